package process_test

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
	"time"

	"github.com/starpatch/starpatch/internal/process"
)

// fifo makes a named pipe: reading from it waits until somebody writes, so tests need no sleep.
func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sh(script string) process.Cmd {
	return process.Cmd{Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Grace: time.Minute}
}

func TestOutputCodeAndEnvironmentAreThePrograms(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	t.Setenv("SECRET", "leaks")
	c := sh(`echo "secret=$SECRET"; echo error >&2; umask; [ -e /proc/self/fd/3 ] && echo fd3; exit 3`)
	c.Output = out
	exit, err := process.Run(context.Background(), c)
	if err != nil || exit.Code != 3 || exit.OK() {
		t.Errorf("got %v, %v; want exit code 3", exit, err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(out)
	if got, want := string(b), "secret=\nerror\n0022\n"; err != nil || got != want {
		t.Errorf("output %q, %v; want %q", got, err, want)
	}
}

func TestNothingRunsWhenItsIdentityCannotBeSaved(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	c := sh("touch " + mark)
	c.Started = func(process.ID) error { return io.ErrShortWrite }
	if _, err := process.Run(context.Background(), c); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("got %v, want the error of Started", err)
	}
	if _, err := os.Stat(mark); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program ran: %v", err)
	}
}

func TestASuccessorWaitsForTheWholeGroup(t *testing.T) {
	pipe := fifo(t)
	ids := make(chan process.ID, 1)
	// The program ends at once; a child of it waits for a line.
	c := sh("read -r x < " + pipe + " & exit 0")
	c.Started = func(id process.ID) error { ids <- id; return nil }
	if exit, err := process.Run(context.Background(), c); err != nil || !exit.OK() {
		t.Fatalf("got %v, %v", exit, err)
	}
	id := <-ids
	if alive, err := id.Alive(); alive || err != nil {
		t.Errorf("the program is alive: %v, %v", alive, err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(io.ErrNoProgress)
	if err := id.Wait(ctx); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("waiting with an ended context: got %v, want its cause", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- id.Wait(context.Background()) }()
	if err := os.WriteFile(pipe, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("waiting for the group: %v", err)
	}
	if err := id.Wait(context.Background()); err != nil {
		t.Errorf("waiting for a group that is gone: %v", err)
	}
}

func TestTimeLimitEndsTheWholeGroup(t *testing.T) {
	pipe := fifo(t)
	c := sh("(trap '' TERM; read -r x < " + pipe + ") & read -r y < " + pipe)
	c.Limit, c.Group = time.Millisecond, true
	var id process.ID
	c.Started = func(i process.ID) error { id = i; return nil }
	exit, err := process.Run(context.Background(), c)
	if err != nil || !exit.TimedOut || exit.OK() {
		t.Errorf("got %+v, %v; want timed out", exit, err)
	}
	if err := id.Wait(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestCancelAsksTheProgramAndLetsItFinish(t *testing.T) {
	ready := fifo(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	c := sh(`trap 'echo asked; exit 7' TERM; echo ready > ` + ready + `; while :; do read -r x < ` + ready + `; done`)
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.Output = out
	go func() {
		f, err := os.Open(ready)
		if err != nil {
			cancel(err)
			return
		}
		defer f.Close()
		bufio.NewReader(f).ReadString('\n')
		cancel(io.ErrNoProgress)
	}()
	exit, err := process.Run(ctx, c)
	if !errors.Is(err, io.ErrNoProgress) || exit.Code != 7 {
		t.Errorf("got %+v, %v; want exit code 7 and the cause", exit, err)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil || !strings.Contains(string(b), "asked") {
		t.Errorf("output %q, %v", b, err)
	}
}

func TestAProgramThatOutstaysItsLimitIsKilled(t *testing.T) {
	ready, ids, ended := fifo(t), make(chan process.ID, 1), make(chan process.Exit, 1)
	c := sh(`trap '' TERM; echo ready > ` + ready + `; while :; do read -r x < ` + ready + `; done`)
	c.Started = func(id process.ID) error { ids <- id; return nil }
	go func() {
		exit, err := process.Run(context.Background(), c)
		if err != nil {
			t.Error(err)
		}
		ended <- exit
	}()
	f, err := os.Open(ready)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := bufio.NewReader(f).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	id := <-ids
	if err := id.Outlive(context.Background(), time.Millisecond, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if exit := <-ended; exit.Signal != syscall.SIGKILL {
		t.Errorf("got %v, want killed", exit)
	}
}
