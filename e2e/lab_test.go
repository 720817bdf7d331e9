package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bin is where make build puts the programs; e2e tests what operators run.
const bin = "../bin"

// hang bounds a command that would otherwise hang a test for ever; nothing here is expected to come near it.
const hang = 5 * time.Minute

// lab is one running cluster of real hosts.
type lab struct {
	t   *testing.T
	dir string
	env []string          // the process environment with what patch-lab env exports
	set map[string]string // the same, by name
}

// up starts a lab and takes it down, with whatever happened in between, when the test ends.
func up(t *testing.T, args ...string) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the end-to-end tests start real hosts and need root: run them by sudo make test")
	}
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, dir: dir, env: os.Environ(), set: map[string]string{}}
	t.Cleanup(func() {
		if t.Failed() {
			l.dumpLogs()
		}
		if r := l.run("patch-lab", "down", "--dir", dir); r.code != 0 {
			t.Errorf("patch-lab down: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l.must("patch-lab", append([]string{"up", "--dir", dir}, args...)...)
	for line := range strings.Lines(l.must("patch-lab", "env", "--dir", dir)) {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if !ok {
			continue
		}
		value = strings.Trim(value, `'"`)
		l.set[name] = value
		if name != "PATH" {
			l.env = append(l.env, name+"="+value)
		}
	}
	return l
}

func (l *lab) dumpLogs() {
	logs, err := filepath.Glob(filepath.Join(l.dir, "hosts", "*", "log", "*"))
	if err != nil {
		l.t.Log(err)
	}
	for _, f := range logs {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if len(text) > 8000 {
			text = text[len(text)-8000:]
		}
		l.t.Logf("== %s\n%s", strings.TrimPrefix(f, l.dir), text)
	}
}

type result struct {
	stdout, stderr string
	code           int
}

// run runs one of our programs and returns what it said and its exit code.
func (l *lab) run(name string, args ...string) result {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.t.Context()), hang)
	defer cancel()
	path, err := filepath.Abs(filepath.Join(bin, name))
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = l.env
	cmd.Dir = l.dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		l.t.Fatalf("%s %s: %v (was it built? run make build)", name, strings.Join(args, " "), err)
	}
	if ctx.Err() != nil {
		l.t.Fatalf("%s %s did not end within %s\n%s%s", name, strings.Join(args, " "), hang, &out, &errs)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// must is run for a command that has to succeed; it returns what it printed on stdout.
func (l *lab) must(name string, args ...string) string {
	l.t.Helper()
	r := l.run(name, args...)
	if r.code != 0 {
		l.t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused is run for a command that has to fail and say why.
func (l *lab) refused(want, name string, args ...string) {
	l.t.Helper()
	r := l.run(name, args...)
	if r.code == 0 {
		l.t.Errorf("%s %s succeeded, want a refusal with %q\n%s", name, strings.Join(args, " "), want, r.stdout)
	}
	if text := r.stdout + r.stderr; !strings.Contains(text, want) {
		l.t.Errorf("%s %s: got\n%s\nwant it to say %q", name, strings.Join(args, " "), text, want)
	}
}

// onHost runs a command inside a host.
func (l *lab) onHost(host string, cmd ...string) string {
	l.t.Helper()
	return l.must("patch-lab", append([]string{"exec", "--dir", l.dir, host, "--"}, cmd...)...)
}

func (l *lab) root(host string) string { return filepath.Join(l.dir, "hosts", host, "root") }

// installed asks the host's own package database, by the machine's rpm, for the version-release of a package; "" when
// it is not installed. Two lines would mean that a transaction was cut and never repaired.
func (l *lab) installed(host, pkg string) string {
	l.t.Helper()
	out, err := exec.CommandContext(l.t.Context(), "rpm", "--root", l.root(host), "--dbpath", "/var/lib/rpm", "-q", "--qf", `%{VERSION}-%{RELEASE}\n`, pkg).Output()
	if _, exited := errors.AsType[*exec.ExitError](err); exited {
		return ""
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// rows reads a sw-patch table: cells by column title, in the order of the rows.
func rows(t *testing.T, table string) []map[string]string {
	t.Helper()
	lines := strings.Split(strings.TrimRight(table, "\n"), "\n")
	if len(lines) < 2 || !strings.HasPrefix(lines[1], "==") {
		t.Fatalf("not a table:\n%s", table)
	}
	var spans [][2]int
	for i := 0; i < len(lines[1]); {
		if lines[1][i] != '=' {
			i++
			continue
		}
		start := i
		for i < len(lines[1]) && lines[1][i] == '=' {
			i++
		}
		spans = append(spans, [2]int{start, i})
	}
	cell := func(line string, s [2]int) string {
		return strings.TrimSpace(line[min(s[0], len(line)):min(s[1], len(line))])
	}
	var out []map[string]string
	for _, line := range lines[2:] {
		row := map[string]string{}
		for _, s := range spans {
			row[cell(lines[0], s)] = cell(line, s)
		}
		out = append(out, row)
	}
	return out
}

// patchState is what sw-patch query says of one patch; "" when it does not know it.
func (l *lab) patchState(id string) string {
	l.t.Helper()
	for _, r := range rows(l.t, l.must("sw-patch", "query")) {
		if r["Patch ID"] == id {
			return r["Patch State"]
		}
	}
	return ""
}

// host is one row of sw-patch query-hosts.
func (l *lab) host(name string) map[string]string {
	l.t.Helper()
	for _, r := range rows(l.t, l.must("sw-patch", "query-hosts")) {
		if r["Hostname"] == name {
			return r
		}
	}
	l.t.Fatalf("sw-patch query-hosts does not list %s", name)
	return nil
}

// equal reports a difference with the name of what differs.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
