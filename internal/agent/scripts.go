package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/process"
	"github.com/starpatch/starpatch/problem"
)

const (
	// toolGrace is how long a program may take to end after it was asked to.
	toolGrace = 15 * time.Minute
	// scriptGrace is the same for in-service scripts.
	scriptGrace = 10 * time.Second
	// scriptOutput is how much of a script's output becomes part of the operation's, in bytes.
	scriptOutput = 4 << 10
	// maxScript is the largest in-service script that is kept for another try, in bytes.
	maxScript = 16 << 20
)

// activate makes changed software effective: a reboot later, or in-service scripts now. failure is why the packages are
// not as planned; then nothing is run, and what waits is kept for the next operation.
func (in *install) activate(ctx context.Context, failure error) error {
	t := in.a.tree
	scripts, err := findScripts(t.path(scriptDir))
	if err != nil {
		return errors.Join(failure, err)
	}
	if !in.changed && len(scripts) == 0 {
		return failure
	}
	if in.changed {
		if err := t.set(flagPatched, true, ""); err != nil {
			return errors.Join(failure, err)
		}
	}
	reboot, err := t.has(flagReboot)
	if err != nil {
		return errors.Join(failure, err)
	}
	if failure != nil {
		return errors.Join(failure, in.keepScripts())
	}
	if reboot {
		return os.RemoveAll(in.a.pendingDir()) // a reboot does what they would have done
	}
	in.j.Phase, in.j.Packages, in.j.Tool = phaseScripts, nil, nil
	if err := in.save(); err != nil {
		return err
	}
	var failed []string
	for _, s := range scripts {
		name := strings.TrimPrefix(s, t.path(scriptDir)+"/")
		exit, err := in.runScript(ctx, s)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v", name, err))
		} else if !exit.OK() {
			failed = append(failed, fmt.Sprintf("%s: %s", name, exit))
		}
	}
	if len(failed) > 0 {
		return errors.Join(problem.Errorf(problem.Unavailable, "in-service script failed: %s; the new software is installed and may not be running; host-install tries again", strings.Join(failed, "; ")), in.keepScripts())
	}
	return errors.Join(t.set(flagPatched, false, ""), os.RemoveAll(in.a.pendingDir()))
}

// findScripts lists the executable regular files below a folder, sorted by path.
func findScripts(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if err == nil && fi.Mode().Perm()&0o111 != 0 {
			out = append(out, path)
		}
		return err
	})
	slices.Sort(out)
	return out, err
}

// runScript runs one script in the host's root, traced into the log of in-service patching.
func (in *install) runScript(ctx context.Context, path string) (exit process.Exit, err error) {
	t := in.a.tree
	if err := os.MkdirAll(t.path(filepath.Dir(scriptLog)), 0o755); err != nil {
		return exit, err
	}
	out, err := os.OpenFile(t.path(scriptLog), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return exit, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	inside := strings.TrimPrefix(path, strings.TrimSuffix(t.root, "/"))
	if _, err := fmt.Fprintf(out, "%s: operation %s runs %s\n", time.Now().UTC().Format(time.RFC3339), in.j.Operation, inside); err != nil {
		return exit, err
	}
	from, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return exit, err
	}
	exit, err = process.Run(ctx, process.Cmd{
		Path: "/bin/bash", Args: []string{"-x", inside}, Root: t.root, Output: out,
		Env:   []string{"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Limit: in.a.cfg.ScriptLimit, Grace: scriptGrace, Group: true, Started: in.started,
	})
	in.scripts += exit.Took
	in.say("%s: %s\n", inside, exit)
	if fi, serr := out.Stat(); serr == nil && fi.Size() > from {
		n := min(fi.Size()-from, scriptOutput)
		tail := make([]byte, n)
		if _, rerr := out.ReadAt(tail, fi.Size()-n); rerr == nil {
			in.output = append(in.output, tail...)
		}
	}
	if _, werr := fmt.Fprintf(out, "%s: %s: %s\n", time.Now().UTC().Format(time.RFC3339), inside, exit); werr != nil {
		err = errors.Join(err, werr)
	}
	return exit, err
}

// keepScripts puts the scripts of a failed operation aside, so that the next one can run them: the packages that brought
// them will not be installed again then.
func (in *install) keepScripts() error {
	return copyScripts(in.a.tree.path(scriptDir), in.a.pendingDir())
}

// copyScripts copies the scripts below one folder to another, which is made; what is there already stays, except for
// scripts of the same path.
func copyScripts(from, to string) error {
	scripts, err := findScripts(from)
	if err != nil || len(scripts) == 0 {
		return err
	}
	for _, s := range scripts {
		rel, err := filepath.Rel(from, s)
		if err != nil {
			return err
		}
		fi, err := os.Stat(s)
		if err != nil {
			return err
		}
		if fi.Size() > maxScript {
			return problem.Errorf(problem.TooLarge, "cannot keep in-service script %s: it has more than %d bytes", rel, maxScript)
		}
		b, err := os.ReadFile(s)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if err := os.MkdirAll(filepath.Dir(dst), 0o700); err != nil {
			return err
		}
		if err := durable.WriteFile(dst, b, 0o700); err != nil {
			return err
		}
	}
	return nil
}
