// Package process runs one outside program at a time the way an agent must: in a session of its own, with a clean
// environment, its output in a file, a time limit, and an identity that is told before the first instruction of the
// program runs, so that a successor of a killed agent can find it again and wait for it.
//
// The output goes to a file and not to a pipe because the program outlives a killed agent: a package tool that writes
// into a broken pipe in the middle of a transaction would stop there.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

// gate holds the program back until one line arrives on descriptor 3; if the other end dies first, nothing runs.
const gate = `read -r _ <&3 || exit 125; exec 3<&-; umask 022; exec "$@"`

// Cmd says what to run and within which limits.
type Cmd struct {
	Path   string   // absolute, below Root
	Args   []string // without the program's name
	Env    []string // the whole environment
	Root   string   // chroot into this folder first; empty or "/": do not. It needs a /bin/sh
	Output *os.File // takes standard output and standard error; nil: thrown away
	// Limit is how long the program may run before it is asked to end; 0: for ever.
	Limit time.Duration
	// Grace is how long it may take to end after that, or after the context has ended, before it and its whole process
	// group are killed.
	Grace time.Duration
	// Group says that the whole process group is asked to end, not the program alone. A package tool finishes its
	// transaction when asked; the scriptlets below it would die of it.
	Group bool
	// Started is told the identity before the program runs; when it fails, the program never runs. May be nil.
	Started func(ID) error
}

// Exit is how a program ended.
type Exit struct {
	Code     int            // exit code; -1 when a signal ended it
	Signal   syscall.Signal // that ended it; 0: none
	TimedOut bool           // it did not end within Limit
	Took     time.Duration
}

// OK says that the program ended by itself, in time, with code 0.
func (e Exit) OK() bool { return e.Code == 0 && !e.TimedOut }

func (e Exit) String() string {
	switch {
	case e.TimedOut:
		return fmt.Sprintf("stopped after its time limit (%s)", e.Took.Round(time.Second))
	case e.Signal != 0:
		return "killed by signal " + strconv.Itoa(int(e.Signal)) + " (" + e.Signal.String() + ")"
	}
	return "exit code " + strconv.Itoa(e.Code)
}

// orphanLimit bounds the wait for processes of the group of a program that died of a signal: a scriptlet finishes by
// itself, but a service that it started in the same group never does.
const orphanLimit = 30 * time.Second

// Run runs the program to its end. When ctx ends it asks the program to end, waits up to Grace, and returns how it ended
// together with the context's cause. An error without a cause of the context means that it could not be run at all.
func Run(ctx context.Context, c Cmd) (Exit, error) {
	if err := context.Cause(ctx); err != nil {
		return Exit{}, err
	}
	hold, release, err := os.Pipe()
	if err != nil {
		return Exit{}, err
	}
	defer release.Close()
	cmd := exec.Command("/bin/sh", append([]string{"-c", gate, "sh", c.Path}, c.Args...)...)
	cmd.Path, cmd.Err = "/bin/sh", nil // below Root, where this process cannot look
	cmd.Env, cmd.Dir = c.Env, "/"
	cmd.ExtraFiles = []*os.File{hold}
	if c.Output != nil {
		cmd.Stdout, cmd.Stderr = c.Output, c.Output
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if c.Root != "" && c.Root != "/" {
		cmd.SysProcAttr.Chroot = c.Root
	}
	if err := errors.Join(cmd.Start(), hold.Close()); err != nil {
		return Exit{}, fmt.Errorf("cannot start %s: %w", c.Path, err)
	}
	id, err := identify(cmd.Process.Pid)
	if err == nil && c.Started != nil {
		err = c.Started(id)
	}
	if err != nil {
		release.Close() // the gate sees the end of its input and runs nothing
		cmd.Wait()
		return Exit{}, fmt.Errorf("cannot start %s: %w", c.Path, err)
	}
	began := time.Now()
	if _, err := release.WriteString("\n"); err != nil {
		release.Close()
		cmd.Wait()
		return Exit{}, fmt.Errorf("cannot start %s: %w", c.Path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	var exit Exit
	err = wait(ctx, c, id, ended, &exit)
	exit.Took = time.Since(began)
	st := cmd.ProcessState
	exit.Code = st.ExitCode()
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		exit.Signal = ws.Signal()
		settle, cancel := context.WithTimeout(context.WithoutCancel(ctx), orphanLimit)
		defer cancel()
		if werr := id.Wait(settle); werr != nil && !errors.Is(werr, context.DeadlineExceeded) {
			return exit, errors.Join(err, werr)
		}
	}
	return exit, err
}

// wait returns when the program has ended; ctx, the limit and the grace make it end.
func wait(ctx context.Context, c Cmd, id ID, ended <-chan error, exit *Exit) error {
	var limit <-chan time.Time
	if c.Limit > 0 {
		t := time.NewTimer(c.Limit)
		defer t.Stop()
		limit = t.C
	}
	var cause error
	select {
	case err := <-ended:
		return notExit(err)
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case <-limit:
		exit.TimedOut = true
	}
	target := id.PID
	if c.Group {
		target = -id.PID
	}
	// The program cannot have been waited for yet by anybody else than the goroutine above, and its number is not used
	// again before that; after it, the error is that there is no such process.
	kill := func(target int, sig syscall.Signal) {
		if err := syscall.Kill(target, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			cause = errors.Join(cause, err)
		}
	}
	kill(target, syscall.SIGTERM)
	grace := time.NewTimer(c.Grace)
	defer grace.Stop()
	select {
	case err := <-ended:
		if c.Group && exit.TimedOut {
			kill(-id.PID, syscall.SIGKILL) // what is left of a group that was to end
		}
		return errors.Join(cause, notExit(err))
	case <-grace.C:
	}
	kill(-id.PID, syscall.SIGKILL)
	return errors.Join(cause, notExit(<-ended))
}

// notExit drops the error that only says that the exit code was not 0.
func notExit(err error) error {
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil
	}
	return err
}
