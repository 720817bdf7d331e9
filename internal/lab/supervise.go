package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readyLimit is how long a process that tells when it is ready may take until then.
const readyLimit = 30 * time.Second

// endLimit is how long a process may take to end after it was asked to. It is shorter than the keeper's patience.
const endLimit = 7 * time.Second

// unit is one process that an init keeps running. Only the supervisor's own goroutine touches it.
type unit struct {
	name  string
	argv  []string
	root  string   // chroot into it; empty: run in the machine's tree
	env   []string // besides PATH, HOME and LANG
	log   string   // file that its output is appended to
	needs string   // a file without which it is not started; empty: none
	tells bool     // it writes a line to descriptor 3 when it is ready

	pid     int // 0: not running
	ready   bool
	wanted  bool
	starts  int
	began   time.Time
	delay   time.Duration
	heard   *os.File       // the other end of the last one's descriptor 3; may be closed
	waiters []chan<- reply // of whoever waits until it is up
}

func (u *unit) up() bool { return u.pid != 0 && (u.ready || !u.tells) }

// supervisor is the init of a host.
type supervisor struct {
	bootID   string
	units    []*unit
	control  *net.UnixListener
	log      *slog.Logger
	requests chan asked
	readies  chan told
	timers   chan timed
	stopping bool
	reported bool // that the host is up
	work     sync.WaitGroup
	done     chan struct{}
}

// told is what a process said on descriptor 3: ready, or nothing until it closed it.
type told struct {
	unit  *unit
	pid   int
	ready bool
}

// timed is a wait that is over.
type timed struct {
	unit   *unit // nil: all of them
	starts int   // of the unit when the wait began; another number means that it is a new process by now
	then   timeout
}

// timeout is what to do when a wait is over.
type timeout int

const (
	retryStart  timeout = iota // of a unit that did not stay up
	giveUpReady                // it was long enough to become ready
	kill                       // it was asked to end long ago
)

func newSupervisor(bootID string, units []*unit, control *net.UnixListener, log *slog.Logger) *supervisor {
	return &supervisor{
		bootID: bootID, units: units, control: control, log: log,
		requests: make(chan asked), readies: make(chan told), timers: make(chan timed), done: make(chan struct{}),
	}
}

// run starts every unit and keeps it running until ctx ends. It is the only reaper of the host's processes.
func (s *supervisor) run(ctx context.Context, up *os.File) error {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	defer signal.Stop(children)
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	s.work.Go(func() { serve(serving, s.control, s.requests) })
	for _, u := range s.units {
		if _, err := os.Stat(u.needs); u.needs != "" && errors.Is(err, fs.ErrNotExist) {
			s.log.Info("not set up", "unit", u.name, "missing", u.needs)
			continue
		}
		u.wanted = true
		s.start(u)
	}
	err := s.loop(ctx, children, up)
	stopServing()
	close(s.done)
	for _, u := range s.units {
		u.unhear()
	}
	s.work.Wait()
	return err
}

func (s *supervisor) loop(ctx context.Context, children <-chan os.Signal, up *os.File) error {
	stop := ctx.Done()
	s.after(readyLimit, timed{then: giveUpReady})
	for {
		if err := s.report(up, false); err != nil {
			return err
		}
		if s.stopping && !slices.ContainsFunc(s.units, func(u *unit) bool { return u.pid != 0 }) {
			s.log.Info("halted")
			return nil
		}
		select {
		case <-stop:
			stop, s.stopping = nil, true
			s.log.Info("ending all processes")
			for _, u := range s.units {
				u.wanted = false
				s.signal(u, unix.SIGTERM)
				s.answer(u, reply{Error: "the host is going down"})
			}
			s.after(endLimit, timed{then: kill})
		case <-children:
			s.reap()
		case a := <-s.requests:
			s.handle(a)
		case t := <-s.readies:
			s.told(t)
		case t := <-s.timers:
			if err := s.timed(t, up); err != nil {
				return err
			}
		}
	}
}

// report tells the keeper once that the host is up: when every unit is, or, if late, that some are not.
func (s *supervisor) report(up *os.File, late bool) error {
	if s.reported {
		return nil
	}
	var failed []string
	for _, u := range s.units {
		if u.wanted && !u.up() {
			failed = append(failed, u.name)
		}
	}
	if len(failed) > 0 && !late {
		return nil
	}
	s.reported = true
	return errors.Join(json.NewEncoder(up).Encode(bootReport{BootID: s.bootID, Failed: failed}), up.Close())
}

func (s *supervisor) start(u *unit) {
	u.ready, u.began, u.starts = false, time.Now().UTC(), u.starts+1
	if err := s.spawn(u); err != nil {
		s.log.Error("cannot start", "unit", u.name, "err", err)
		s.answer(u, reply{Error: fmt.Sprintf("cannot start %s: %v", u.name, err)})
		s.again(u)
		return
	}
	s.log.Info("started", "unit", u.name, "pid", u.pid, "starts", u.starts)
	if u.tells {
		s.after(readyLimit, timed{unit: u, starts: u.starts, then: giveUpReady})
		return
	}
	s.answer(u, reply{Units: []unitState{state(u)}})
}

func (s *supervisor) spawn(u *unit) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	out, err := os.OpenFile(u.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	files := []*os.File{null, out, out}
	var heard *os.File
	if u.tells {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		defer w.Close()
		heard, files = r, append(files, w)
	}
	p, err := os.StartProcess(u.argv[0], u.argv, &os.ProcAttr{
		Dir: "/", Files: files,
		Env: append([]string{"PATH=" + systemPath, "HOME=/root", "LANG=C.UTF-8"}, u.env...),
		Sys: &syscall.SysProcAttr{Setsid: true, Chroot: u.root},
	})
	if err != nil {
		if heard != nil {
			err = errors.Join(err, heard.Close())
		}
		return err
	}
	u.pid = p.Pid
	if heard != nil {
		u.unhear()
		u.heard = heard
		pid := p.Pid
		s.work.Go(func() {
			_, err := bufio.NewReader(io.LimitReader(heard, 64)).ReadString('\n')
			send(s.done, s.readies, told{u, pid, err == nil})
		})
	}
	return p.Release() // reap waits for it
}

// unhear ends the reading of what the last process says.
func (u *unit) unhear() {
	if u.heard != nil {
		u.heard.Close() // nothing more is wanted of it
		u.heard = nil
	}
}

// reap takes the end of every process of the host that has ended: units, and orphans that nobody else waits for.
func (s *supervisor) reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if i := slices.IndexFunc(s.units, func(u *unit) bool { return u.pid == pid }); i >= 0 {
			s.ended(s.units[i], status)
		}
	}
}

func (s *supervisor) ended(u *unit, status unix.WaitStatus) {
	how := fmt.Sprintf("exit code %d", status.ExitStatus())
	if status.Signaled() {
		how = "signal " + status.Signal().String()
	}
	s.log.Info("ended", "unit", u.name, "pid", u.pid, "by", how)
	u.pid, u.ready = 0, false
	if s.stopping || !u.wanted {
		return
	}
	if time.Since(u.began) > steady {
		u.delay = 0
		s.start(u)
		return
	}
	s.again(u)
}

// again starts a unit that does not stay up after a growing wait; one that somebody waits for gets its first try at once.
func (s *supervisor) again(u *unit) {
	if !u.wanted || s.stopping {
		return
	}
	u.delay = min(max(firstRestart, 2*u.delay), longestRestart)
	s.after(u.delay, timed{unit: u, starts: u.starts, then: retryStart})
}

func (s *supervisor) told(t told) {
	if t.unit.pid != t.pid || !t.ready {
		return
	}
	t.unit.ready = true
	s.log.Info("ready", "unit", t.unit.name, "pid", t.pid)
	s.answer(t.unit, reply{Units: []unitState{state(t.unit)}})
}

func (s *supervisor) timed(t timed, up *os.File) error {
	switch u := t.unit; {
	case u == nil && t.then == giveUpReady:
		return s.report(up, true)
	case u == nil:
		for _, u := range s.units {
			s.signal(u, unix.SIGKILL)
		}
	case u.starts != t.starts:
	case t.then == kill:
		s.signal(u, unix.SIGKILL)
	case t.then == giveUpReady && !u.up():
		s.answer(u, reply{Error: fmt.Sprintf("%s is not ready after %s; its output is in %s", u.name, readyLimit, u.log)})
	case t.then == retryStart && u.pid == 0 && u.wanted && !s.stopping:
		s.start(u)
	}
	return nil
}

func (s *supervisor) handle(a asked) {
	if a.Do == "status" {
		var all []unitState
		for _, u := range s.units {
			all = append(all, state(u))
		}
		a.answer <- reply{Units: all}
		return
	}
	i := slices.IndexFunc(s.units, func(u *unit) bool { return u.name == a.Name })
	switch {
	case s.stopping:
		a.answer <- reply{Error: "the host is going down"}
	case i < 0:
		a.answer <- reply{Error: fmt.Sprintf("nothing on this host is called %q", a.Name)}
	case a.Do == "start" && s.units[i].up():
		a.answer <- reply{Units: []unitState{state(s.units[i])}}
	case a.Do == "start" || a.Do == "restart":
		u := s.units[i]
		u.waiters, u.wanted, u.delay = append(u.waiters, a.answer), true, 0
		switch {
		case u.pid == 0:
			s.start(u)
		case a.Do == "restart":
			// Old enough to be started anew at once, whenever it was started.
			u.began, u.ready = time.Time{}, false
			s.signal(u, unix.SIGTERM)
			s.after(endLimit, timed{unit: u, starts: u.starts, then: kill})
		}
	default:
		a.answer <- reply{Error: fmt.Sprintf("an init cannot %q", a.Do)}
	}
}

func state(u *unit) unitState {
	return unitState{Name: u.name, PID: u.pid, Up: u.up(), Starts: u.starts, Since: u.began}
}

func (s *supervisor) signal(u *unit, sig unix.Signal) {
	if u.pid == 0 {
		return
	}
	// Nobody but reap waits for it, on this goroutine: the number still means this process.
	if err := unix.Kill(u.pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		s.log.Error("cannot signal", "unit", u.name, "err", err)
	}
}

func (s *supervisor) answer(u *unit, r reply) {
	for _, w := range u.waiters {
		w <- r
	}
	u.waiters = nil
}

// after sends t back to the supervisor later, unless it ends before.
func (s *supervisor) after(d time.Duration, t timed) {
	s.work.Go(func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			send(s.done, s.timers, t)
		case <-s.done:
		}
	})
}
