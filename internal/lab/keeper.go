package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopLimit is how long a host may take to end its processes before its power is cut.
const stopLimit = 10 * time.Second

// The waits before a host that keeps falling over is started again.
const (
	firstRestart   = 100 * time.Millisecond
	longestRestart = 5 * time.Second
	steady         = 2 * time.Second // a boot that lasted this long was no accident
)

// bootReport is the one line that an init writes when its host is up.
type bootReport struct {
	PID    int      `json:"pid,omitempty"` // of the init as the machine sees it; the keeper fills it in
	BootID string   `json:"boot_id"`
	Failed []string `json:"failed,omitempty"` // units that did not start
	Error  string   `json:"error,omitempty"`  // the host cannot start at all
}

// power is one host as its keeper sees it. Only the keeper's own goroutine touches it.
type power struct {
	Host
	cmd     *exec.Cmd // nil: not running
	on      bool      // the switch
	boot    bootReport
	up      bool
	boots   int
	began   time.Time
	delay   time.Duration
	waiters []chan<- reply // of whoever waits for the next boot
}

// keeper is the power switch of a lab's hosts.
type keeper struct {
	lab      *Lab
	log      *slog.Logger
	hosts    map[string]*power
	requests chan asked
	exits    chan exited
	ups      chan booted
	restarts chan string
	cuts     chan cut
	stopping bool
	work     sync.WaitGroup
	done     chan struct{} // closed when nobody reads the channels above any more
}

type exited struct {
	host string
	cmd  *exec.Cmd
}

type booted struct {
	host   string
	cmd    *exec.Cmd
	report bootReport
}

type cut struct {
	host string
	cmd  *exec.Cmd
}

// RunKeeper serves the switch of every host of the lab on l until ctx ends; then it shuts all hosts down. Call it from
// the main goroutine: the hosts' inits are killed by the kernel when the thread that started them ends.
func RunKeeper(ctx context.Context, lab *Lab, l net.Listener, log *slog.Logger) error {
	runtime.LockOSThread()
	k := &keeper{
		lab: lab, log: log, hosts: map[string]*power{},
		requests: make(chan asked), exits: make(chan exited), ups: make(chan booted), restarts: make(chan string), cuts: make(chan cut),
		done: make(chan struct{}),
	}
	for _, h := range lab.Hosts {
		k.hosts[h.Name] = &power{Host: h}
	}
	if lab.NetNS {
		if err := makeSwitch(); err != nil {
			return err
		}
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	k.work.Go(func() { serve(serving, l, k.requests) })
	k.run(ctx)
	stopServing()
	close(k.done)
	k.work.Wait()
	log.Info("all hosts are off")
	return nil
}

// run is the owner of all hosts. It returns when ctx has ended and every host is off.
func (k *keeper) run(ctx context.Context) {
	stop := ctx.Done()
	for {
		if k.stopping && k.allOff() {
			return
		}
		select {
		case <-stop:
			stop, k.stopping = nil, true
			for _, p := range k.hosts {
				p.on = false
				k.shutDown(p)
				k.answer(p, reply{Error: "the lab is being taken down"})
			}
		case a := <-k.requests:
			k.handle(a)
		case e := <-k.exits:
			k.exited(e)
		case b := <-k.ups:
			k.booted(b)
		case name := <-k.restarts:
			if p := k.hosts[name]; p.on && p.cmd == nil {
				k.start(p)
			}
		case c := <-k.cuts:
			if p := k.hosts[c.host]; p.cmd == c.cmd {
				k.log.Warn("cutting the power: it did not shut down in time", "host", c.host)
				k.signal(p, syscall.SIGKILL)
			}
		}
	}
}

func (k *keeper) allOff() bool {
	for _, p := range k.hosts {
		if p.cmd != nil {
			return false
		}
	}
	return true
}

func (k *keeper) handle(a asked) {
	p, known := k.hosts[a.Name]
	switch {
	case a.Do == "status":
		a.answer <- reply{Hosts: k.status()}
	case k.stopping:
		a.answer <- reply{Error: "the lab is being taken down"}
	case !known:
		a.answer <- reply{Error: fmt.Sprintf("the lab has no host %q", a.Name)}
	case a.Do == "on" && p.up:
		a.answer <- reply{Boot: &p.boot}
	case a.Do == "on":
		p.waiters = append(p.waiters, a.answer)
		if p.on = true; p.cmd == nil {
			k.start(p)
		}
	case !p.on:
		a.answer <- reply{Error: a.Name + " is off"}
	case a.Do == "wait" && p.up && p.boot.PID != a.Not:
		a.answer <- reply{Boot: &p.boot}
	case a.Do == "wait":
		p.waiters = append(p.waiters, a.answer)
	case a.Do == "reboot":
		p.waiters = append(p.waiters, a.answer)
		p.up = false
		k.shutDown(p)
	default:
		a.answer <- reply{Error: fmt.Sprintf("a keeper cannot %q", a.Do)}
	}
}

func (k *keeper) status() []powered {
	var all []powered
	for _, h := range k.lab.Hosts {
		p := k.hosts[h.Name]
		s := powered{Name: h.Name, BootID: p.boot.BootID, Boots: p.boots, Since: p.began}
		if p.cmd != nil && p.up {
			s.PID = p.cmd.Process.Pid
		}
		all = append(all, s)
	}
	return all
}

// start boots a host. What goes wrong is told to whoever waits, and tried again.
func (k *keeper) start(p *power) {
	p.began, p.up, p.boot = time.Now().UTC(), false, bootReport{}
	if err := k.spawn(p); err != nil {
		k.log.Error("cannot start the host", "host", p.Name, "err", err)
		k.answer(p, reply{Error: fmt.Sprintf("cannot start %s: %v", p.Name, err)})
		p.on = false
		return
	}
	p.boots++
	k.log.Info("power on", "host", p.Name, "pid", p.cmd.Process.Pid, "boot", p.boots)
}

func (k *keeper) spawn(p *power) (err error) {
	reports, report, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close() // the init has its own
	ready, release, err := os.Pipe()
	if err != nil {
		return errors.Join(err, reports.Close())
	}
	defer release.Close()
	defer ready.Close()
	logFile, err := os.OpenFile(k.lab.logFile(p.Name, "init"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return errors.Join(err, reports.Close())
	}
	defer logFile.Close()
	cmd := exec.Command("/proc/self/exe", "init", "--dir", k.lab.Dir, p.Name)
	cmd.Args[0] = "patch-lab"
	cmd.Env = k.lab.environment("init")
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{report, ready}
	flags := uintptr(unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC)
	if k.lab.NetNS {
		flags |= unix.CLONE_NEWNET
	}
	// The signal is the wire between the switch and the host: no keeper, no power.
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL, Setsid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("%w; a host needs namespaces of its own, and a container needs the capability SYS_ADMIN for that", err), reports.Close())
	}
	p.cmd = cmd
	k.work.Go(func() {
		line, err := bufio.NewReader(reports).ReadBytes('\n')
		b := booted{host: p.Name, cmd: cmd}
		if err == nil {
			err = json.Unmarshal(line, &b.report)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			b.report.Error = err.Error()
		}
		reports.Close() // read to the end of what is wanted
		if err == nil || b.report.Error != "" {
			send(k.done, k.ups, b)
		}
		cmd.Wait() // how an init ended is in its log
		send(k.done, k.exits, exited{p.Name, cmd})
	})
	if k.lab.NetNS {
		if err := plug(p.Host, cmd.Process.Pid); err != nil {
			k.signal(p, syscall.SIGKILL)
			return err
		}
	}
	_, err = release.Write([]byte{'\n'})
	return err
}

// send gives v to the owner unless the owner has gone.
func send[T any](done <-chan struct{}, to chan<- T, v T) {
	select {
	case to <- v:
	case <-done:
	}
}

func (k *keeper) booted(b booted) {
	p := k.hosts[b.host]
	if p.cmd != b.cmd {
		return
	}
	if b.report.Error != "" {
		k.log.Error("the host cannot start", "host", p.Name, "err", b.report.Error)
		k.answer(p, reply{Error: fmt.Sprintf("cannot start %s: %s", p.Name, b.report.Error)})
		return
	}
	p.boot, p.up = b.report, true
	p.boot.PID = p.cmd.Process.Pid
	k.log.Info("up", "host", p.Name, "boot_id", p.boot.BootID, "failed", p.boot.Failed)
	k.answer(p, reply{Boot: &p.boot})
}

// exited starts a host again whose switch is on: it rebooted, or it crashed.
func (k *keeper) exited(e exited) {
	p := k.hosts[e.host]
	if p.cmd != e.cmd {
		return
	}
	k.log.Info("power off", "host", p.Name, "init", e.cmd.ProcessState.String())
	p.cmd, p.up = nil, false
	if !p.on || k.stopping {
		return
	}
	if time.Since(p.began) > steady {
		p.delay = 0
		k.start(p)
		return
	}
	p.delay = min(max(firstRestart, 2*p.delay), longestRestart)
	k.after(p.delay, func() { send(k.done, k.restarts, p.Name) })
}

// shutDown asks a host to end and has its power cut when it does not.
func (k *keeper) shutDown(p *power) {
	if p.cmd == nil {
		return
	}
	k.signal(p, syscall.SIGTERM)
	c := cut{p.Name, p.cmd}
	k.after(stopLimit, func() { send(k.done, k.cuts, c) })
}

// after calls f later, unless the keeper ends before.
func (k *keeper) after(d time.Duration, f func()) {
	k.work.Go(func() {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
			f()
		case <-k.done:
		}
	})
}

func (k *keeper) signal(p *power, sig os.Signal) {
	if p.cmd == nil {
		return
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		k.log.Error("cannot signal the host", "host", p.Name, "err", err)
	}
}

func (k *keeper) answer(p *power, r reply) {
	for _, w := range p.waiters {
		w <- r
	}
	p.waiters = nil
}
