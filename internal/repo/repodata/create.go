package repodata

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// createRepo is the program that makes repository metadata.
const createRepo = "createrepo_c"

// killGrace is how long a cancelled createrepo_c may take to close its output before waiting for it is given up. It holds
// nothing that needs an orderly end.
const killGrace = 2 * time.Second

// Create makes dir/repodata for the packages below dir with createrepo_c: no databases, and the revision as the only time
// in it, so that the same packages with the same modification times give the same bytes. The file at groups, if not
// empty, becomes the groups of the repository. A package that cannot be read is an error. Cancelling ctx kills the
// program and what it started; dir is then to be thrown away.
func Create(ctx context.Context, dir string, revision int64, groups string) error {
	args := []string{"--quiet", "--no-database", "--error-exit-val", "--checksum", "sha256", "--compress-type", "gz",
		"--revision", strconv.FormatInt(revision, 10), "--set-timestamp-to-revision"}
	if groups != "" {
		args = append(args, "--groupfile", groups)
	}
	cmd := exec.CommandContext(ctx, createRepo, append(args, ".")...)
	cmd.Dir = dir
	// No HOME: rpm macros of whoever started us must not reach the metadata.
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=/nonexistent", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killGrace
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("cannot make the metadata of %s: %w", filepath.Base(dir), context.Cause(ctx))
		}
		return fmt.Errorf("cannot make the metadata of %s: %s: %w", filepath.Base(dir), cmp.Or(tail(output.String(), 2000), "no output"), err)
	}
	return nil
}

// tail returns the last n bytes of a program's output on one line.
func tail(s string, n int) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	return s[max(0, len(s)-n):]
}

// Add puts a file beside the metadata in dir and names it in repomd.xml, with timestamp as its time: modifyrepo_c would
// stamp the present time. The file becomes repodata/<sha256>-<name>. Nothing is made durable here.
func Add(dir, typ, name string, content []byte, timestamp int64) error {
	path := filepath.Join(dir, filepath.FromSlash(RepomdPath))
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("cannot add %s to the repository: %w", typ, err)
	}
	const end = "</repomd>"
	i := bytes.LastIndex(old, []byte(end))
	if i < 0 {
		return fmt.Errorf("cannot add %s to the repository: repomd.xml has no end", typ)
	}
	digest := sum(content)
	location := "repodata/" + digest + "-" + name
	if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(location)), content, 0o644); err != nil {
		return fmt.Errorf("cannot add %s to the repository: %w", typ, err)
	}
	record := fmt.Sprintf(`  <data type="%s">
    <checksum type="sha256">%s</checksum>
    <location href="%s"/>
    <timestamp>%d</timestamp>
    <size>%d</size>
  </data>
`, typ, digest, location, timestamp, len(content))
	text := bytes.Join([][]byte{old[:i], []byte(record), old[i:]}, nil)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("cannot add %s to the repository: %w", typ, err)
	}
	return nil
}

// Folder is a [Fetch] for a repository in a local folder. Locations cannot lead out of it.
func Folder(root *os.Root) Fetch {
	return func(_ context.Context, location string) (io.ReadCloser, error) {
		return root.Open(filepath.FromSlash(location))
	}
}
