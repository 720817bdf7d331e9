package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// makeFeed writes the base packages of every personality into the lab's feed folder, copies those of the folder extra
// beside them (empty: none), and returns which files each personality's hosts have.
func (l *Lab) makeFeed(extra string) (map[host.Personality][]string, error) {
	if err := os.MkdirAll(l.Feed(), 0o755); err != nil {
		return nil, err
	}
	packages, err := readLoad(l.Bin)
	if err != nil {
		return nil, err
	}
	var added []string
	if extra != "" {
		if added, err = copyPackages(extra, l.Feed()); err != nil {
			return nil, err
		}
	}
	written := map[string]bool{}
	files := map[host.Personality][]string{}
	for _, h := range l.Hosts {
		if files[h.Personality] != nil {
			continue
		}
		specs, err := packages.base(h.Personality)
		if err != nil {
			return nil, err
		}
		for _, s := range specs {
			path := filepath.Join(l.Feed(), s.FileName())
			if !written[path] {
				if _, err := s.WriteTo(l.Feed()); err != nil {
					return nil, fmt.Errorf("cannot write the base packages: %w", err)
				}
				written[path] = true
			}
			files[h.Personality] = append(files[h.Personality], path)
		}
		files[h.Personality] = append(files[h.Personality], added...)
	}
	return files, nil
}

func copyPackages(from, to string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(from, "*.rpm"))
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, problem.Errorf(problem.Invalid, "cannot add base packages: %s holds no file whose name ends in .rpm", from)
	}
	var out []string
	builds := map[rpm.Key]string{}
	for _, f := range found {
		name, err := rpm.ParseFileName(filepath.Base(f))
		if err != nil {
			return nil, err
		}
		if other := builds[name.Key()]; other != "" {
			return nil, problem.Errorf(problem.Invalid, "cannot add base packages: %s holds %s and %s, and a host can have only one of them; keep the one of the base load", from, other, filepath.Base(f))
		}
		builds[name.Key()] = filepath.Base(f)
		path := filepath.Join(to, filepath.Base(f))
		if err := copyFile(f, path); err != nil {
			return nil, problem.Errorf(problem.Invalid, "cannot add base package: %w", err)
		}
		out = append(out, path)
	}
	return out, nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// makeRoots makes the root folder of every host: the first of a personality by rpm, the others as copies of it.
func (l *Lab) makeRoots(ctx context.Context, files map[host.Personality][]string) error {
	first := map[host.Personality]string{}
	for _, h := range l.Hosts {
		if err := os.MkdirAll(filepath.Join(l.hostDir(h.Name), "log"), 0o755); err != nil {
			return err
		}
		root := l.Root(h.Name)
		if from, made := first[h.Personality]; made {
			cmd := exec.CommandContext(ctx, "cp", "-a", "--reflink=auto", from, root)
			cmd.Env = l.environment("tool")
			if out, err := cmd.CombinedOutput(); err != nil {
				return problem.Errorf(problem.Unavailable, "cannot copy the root of %s: %w: %s", h.Name, err, strings.TrimSpace(string(out)))
			}
			continue
		}
		if err := os.Mkdir(root, 0o755); err != nil {
			return err
		}
		if err := l.rpmInstall(ctx, root, files[h.Personality]); err != nil {
			return problem.Errorf(problem.Invalid, "cannot make the root of %s: %w", h.Name, err)
		}
		first[h.Personality] = root
	}
	for _, h := range l.Hosts {
		if err := l.platformFiles(h); err != nil {
			return err
		}
	}
	return nil
}

// rpmInstall installs package files into an empty root with the machine's rpm.
func (l *Lab) rpmInstall(ctx context.Context, root string, files []string) error {
	home, err := os.MkdirTemp("", "lab-rpm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home) // empty but for what rpm leaves
	args := append([]string{"--root", root, "--dbpath", "/var/lib/rpm", "--force-debian", "--nomanifest", "-i"}, files...)
	cmd := exec.CommandContext(ctx, "rpm", args...)
	cmd.Env = l.environment("tool", "HOME="+home)
	out, err := cmd.CombinedOutput()
	if text := strings.TrimSpace(string(out)); err != nil || strings.Contains(text, "scriptlet failed") {
		return fmt.Errorf("rpm: %s", text)
	}
	return nil
}

// platformFiles writes what a host tells of itself, where the agent and patch scripts look for it.
func (l *Lab) platformFiles(h Host) error {
	for _, f := range []struct{ path, text string }{
		{"etc/build.info", "SW_VERSION=\"" + Release + "\"\nBUILD_TARGET=\"Host Installer\"\n"},
		{"etc/platform/platform.conf", fmt.Sprintf("nodetype=%s\nsubfunction=%s\nmanagement_interface=lo\nsystem_mode=%s\n",
			h.Personality.NodeType(), strings.Join(h.Personality.Subfunctions(), ","), l.systemMode())},
		{"etc/hostname", h.Name + "\n"},
		{"etc/hosts", l.hostsFile()},
	} {
		path := filepath.Join(l.Root(h.Name), f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(f.text), 0o644); err != nil {
			return err
		}
	}
	return os.MkdirAll(l.stateDir(h.Name, ""), fs.FileMode(0o700))
}

func (l *Lab) systemMode() string {
	if len(l.Hosts) == 1 {
		return "simplex"
	}
	return "duplex"
}

func (l *Lab) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	for _, h := range l.Hosts {
		fmt.Fprintf(&b, "%s %s\n", h.Address, h.Name)
		if h.Name == firstController {
			fmt.Fprintf(&b, "%s controller\n", h.Address)
		}
	}
	return b.String()
}
