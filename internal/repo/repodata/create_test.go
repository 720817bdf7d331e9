package repodata

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// program puts a shell script in the place of createrepo_c.
func program(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, createRepo), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

func TestCancelledCreateLeavesNoProcess(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	program(t, "exec 9>"+fifo+"\necho started >&9\nsleep 1000 &\nwait\n")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- Create(ctx, dir, 1, "") }()
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	if line, err := r.ReadString('\n'); err != nil || line != "started\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	why := errors.New("the controller is stopping")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
	// The script and its child hold the other end: it closes when both are gone.
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
}

func TestCreateTellsWhatTheProgramSaid(t *testing.T) {
	program(t, "echo 'C_CREATEREPOLIB: Warning: x.rpm: no package' >&2\nexit 2\n")
	err := Create(t.Context(), t.TempDir(), 1, "")
	if err == nil || !strings.Contains(err.Error(), "x.rpm: no package: exit status 2") {
		t.Errorf("got %v", err)
	}
}

func TestCreateHidesOurEnvironment(t *testing.T) {
	t.Setenv("SECRET", "x")
	dir := t.TempDir()
	program(t, "env >"+filepath.Join(dir, "env")+"\n")
	if err := Create(t.Context(), dir, 1, ""); err != nil {
		t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil || strings.Contains(string(env), "SECRET") || !strings.Contains(string(env), "HOME=/nonexistent") {
		t.Errorf("environment: %s, %v", env, err)
	}
}
