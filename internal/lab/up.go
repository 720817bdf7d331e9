package lab

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// Options say what lab to make.
type Options struct {
	Dir      string // folder; made if it is not there
	Topology Topology
	Bin      string // folder with the other programs
	Feed     string // folder with more base packages; empty: none
	// PortOffset is added to every default port.
	PortOffset int
	Compat     bool // open the token-less compatible API on controller-0's address
	NetNS      bool // give every host a network namespace of its own
	Bare       bool // hosts and their services only: no controller, no agents
}

// bootLimit bounds one boot of a host, agent's first report included: what takes longer has gone wrong.
const bootLimit = 60 * time.Second

// Up makes a lab and returns when every host has started everything and reported. say is told of every step. When
// anything fails nothing is left running.
func Up(ctx context.Context, o Options, say func(format string, args ...any)) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, problem.Errorf(problem.Forbidden, "patch-lab up must run as root: hosts have namespaces, mounts and package databases of their own; run it with sudo")
	}
	if err := checkTools(o); err != nil {
		return nil, err
	}
	l, err := o.lab()
	if err != nil {
		return nil, err
	}
	if err := l.claim(); err != nil {
		if l.Made {
			return nil, errors.Join(err, os.Remove(l.Dir))
		}
		return nil, err
	}
	made := l.make(ctx, o, say)
	err = made
	if err == nil {
		err = l.start(ctx, say)
	}
	switch {
	case err == nil:
		return l, nil
	case ctx.Err() != nil:
		return nil, errors.Join(problem.Errorf(problem.Unavailable, "interrupted; nothing is left of the lab"), sweep(l.ID), l.remove())
	case made != nil:
		return nil, errors.Join(err, l.remove()) // nothing has run yet, so nothing in it is worth looking at
	default:
		if serr := sweep(l.ID); serr != nil {
			return nil, errors.Join(err, serr)
		}
		return nil, fmt.Errorf("%w\nnothing runs any more; logs are in %s, and patch-lab down --dir %s removes them", err, filepath.Join(l.Dir, "hosts/*/log"), l.Dir)
	}
}

func (o Options) lab() (*Lab, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.ContainsAny(dir+bin, "'\n"):
		return nil, problem.Errorf(problem.Invalid, "the lab's folder %q and that of its programs %q must not contain quotes or line breaks", dir, bin)
	case o.PortOffset < 0 || o.PortOffset > 65535-servicePort:
		return nil, problem.Errorf(problem.Invalid, "--port-base is added to every port; expected 0 to %d, not %d", 65535-servicePort, o.PortOffset)
	case o.NetNS && o.Compat:
		return nil, problem.Errorf(problem.Invalid, "--compat and --netns exclude each other: the compatible API would listen in a network that nothing outside the lab can reach")
	}
	made := false
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, problem.Errorf(problem.Invalid, "cannot make the lab's folder: %w", err)
		}
		made = true
	}
	return &Lab{Dir: dir, Made: made, Topology: o.Topology.String(), PortOffset: o.PortOffset, Compat: o.Compat, NetNS: o.NetNS, Bare: o.Bare, Bin: bin, Hosts: o.Topology.Hosts()}, nil
}

// checkTools says what is missing and where it comes from, all at once.
func checkTools(o Options) error {
	tools := []struct{ program, pkg string }{{"rpm", "rpm"}, {"dnf", "dnf"}, {"createrepo_c", "createrepo-c"}, {"/bin/busybox", "busybox-static"}, {"/bin/bash-static", "bash-static"}}
	if o.NetNS {
		tools = append(tools, []struct{ program, pkg string }{{"ip", "iproute2"}, {"nsenter", "util-linux"}}...)
	}
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	if len(missing) > 0 {
		return problem.Errorf(problem.Unavailable, "the lab needs Debian packages that are not installed: %s; run: apt-get install %s", strings.Join(missing, ", "), strings.Join(missing, " "))
	}
	programs := []string{"lab-service"}
	if !o.Bare {
		programs = append(programs, "sw-patch-controller", "sw-patch-agent")
	}
	for _, p := range programs {
		if _, err := os.Stat(filepath.Join(o.Bin, p)); err != nil {
			return problem.Errorf(problem.Unavailable, "the program %s is not in %s; make build puts all programs into one folder", p, o.Bin)
		}
	}
	return nil
}

// make makes all files of the lab.
func (l *Lab) make(ctx context.Context, o Options, say func(string, ...any)) error {
	say("making %d hosts (%s), release %s", len(l.Hosts), l.Topology, Release)
	for _, d := range []string{"log", "hosts", "keys", "trust/formal", "trust/dev"} {
		if err := os.MkdirAll(filepath.Join(l.Dir, d), 0o755); err != nil {
			return err
		}
	}
	files, err := l.makeFeed(o.Feed)
	if err != nil {
		return err
	}
	if err := l.makeRoots(ctx, files); err != nil {
		return err
	}
	if err := l.makeKeys(); err != nil {
		return fmt.Errorf("cannot make the lab's signing key: %w", err)
	}
	if l.Bare {
		return nil
	}
	return l.makeController(ctx)
}

// keyBits is the size of the lab's signing key; that of the original's keys.
const keyBits = 2048

// makeKeys makes the key that the lab's operator signs patches with. It is of class formal: a developer's key would raise
// an alarm on every host.
func (l *Lab) makeKeys() error {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(l.SigningKey(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600),
		os.WriteFile(l.publicKey(), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644))
}

func (l *Lab) publicKey() string { return filepath.Join(l.Trust(), "formal", "lab.pem") }

// start starts the keeper and boots every host.
func (l *Lab) start(ctx context.Context, say func(string, ...any)) error {
	if err := l.startKeeper(); err != nil {
		return err
	}
	say("starting %s at %s", firstController, l.address(firstController))
	if err := l.powerOn(ctx, firstController); err != nil {
		return err
	}
	if !l.Bare {
		if err := l.setUp(ctx, say); err != nil {
			return err
		}
	}
	say("starting the other hosts")
	g, gctx := errgroup.WithContext(ctx)
	for _, h := range l.Hosts {
		if h.Name != firstController {
			g.Go(func() error { return l.powerOn(gctx, h.Name) })
		}
	}
	if !l.Bare {
		g.Go(func() error { return l.startUnit(gctx, firstController, "sw-patch-agent") })
	}
	return g.Wait()
}

func (l *Lab) address(host string) string {
	h, err := l.Host(host)
	if err != nil {
		panic("internal error: " + err.Error())
	}
	return h.Address
}

// startKeeper starts the keeper in a session of its own. It inherits its listening socket, so that whoever asks it
// something next is only early, never refused.
func (l *Lab) startKeeper() error {
	socket, err := listen(l.keeperSocket())
	if err != nil {
		return problem.Errorf(problem.Unavailable, "cannot open the keeper's socket: %w", err)
	}
	defer socket.Close() // the keeper has its own
	inherited, err := socket.File()
	if err != nil {
		return err
	}
	defer inherited.Close()
	out, err := os.OpenFile(l.keeperLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"patch-lab", "keeper", "--dir", l.Dir}, &os.ProcAttr{
		Dir: "/", Files: []*os.File{null, out, out, inherited},
		Env: l.environment("keeper"),
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return problem.Errorf(problem.Unavailable, "cannot start the lab's keeper: %w", err)
	}
	return p.Release() // it outlives this process
}

// powerOn boots a host and returns when everything on it is up.
func (l *Lab) powerOn(ctx context.Context, host string) error {
	return l.switched(ctx, request{Do: "on", Name: host})
}

func (l *Lab) switched(ctx context.Context, r request) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, problem.Errorf(problem.Unavailable, "it is not up after %s", bootLimit))
	defer cancel()
	answer, err := l.askKeeper(ctx, r)
	if err != nil {
		return fmt.Errorf("%s: %w; %s", r.Name, err, l.logsHint(r.Name))
	}
	if answer.Boot != nil && len(answer.Boot.Failed) > 0 {
		return problem.Errorf(problem.Unavailable, "%s is up, but without %s; %s", r.Name, strings.Join(answer.Boot.Failed, ", "), l.logsHint(r.Name))
	}
	return nil
}

func (l *Lab) logsHint(host string) string {
	return "see " + filepath.Join(l.hostDir(host), "log")
}

// startUnit has a host's init start one of its processes and returns when it is up.
func (l *Lab) startUnit(ctx context.Context, host, unit string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bootLimit, problem.Errorf(problem.Unavailable, "it is not up after %s", bootLimit))
	defer cancel()
	if _, err := ask(ctx, filepath.Join(l.Root(host), initSocket), request{Do: "start", Name: unit}); err != nil {
		return fmt.Errorf("%s: %s: %w; %s", host, unit, err, l.logsHint(host))
	}
	return nil
}

// Reboot reboots a host: its namespace ends with everything in it, /run is emptied, and it starts again under a new boot
// id. Reboot returns when everything on it is up, the agent's first report included.
func (l *Lab) Reboot(ctx context.Context, host string) error {
	if os.Geteuid() != 0 {
		return problem.Errorf(problem.Forbidden, "patch-lab exec must run as root; run it with sudo")
	}
	if _, err := l.Host(host); err != nil {
		return err
	}
	return l.switched(ctx, request{Do: "reboot", Name: host})
}

// Down ends and removes the lab in dir, whatever state it is in, also when the folder or the keeper has gone. It returns
// false when there was none.
func Down(dir string, log *slog.Logger) (bool, error) {
	if os.Geteuid() != 0 {
		return false, problem.Errorf(problem.Forbidden, "patch-lab down must run as root, as up did; run it with sudo")
	}
	l, err := Open(dir)
	if errors.Is(err, errNoLab) {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return false, err
		}
		if l = (&Lab{Dir: abs, ID: claimOf(abs)}); l.ID == "" {
			return false, nil
		}
	} else if err != nil {
		return false, err
	}
	if err := l.stop(log); err != nil {
		return true, err
	}
	return true, l.remove()
}

// stop lets the keeper shut every host down, and kills what does not go.
func (l *Lab) stop(log *slog.Logger) error {
	found, err := marked(l.ID)
	if err != nil {
		return err
	}
	for _, m := range found {
		if m.role == "keeper" && err == nil {
			ended := false
			if err = m.signal(unix.SIGTERM); err == nil {
				ended, err = m.wait(stopLimit + 5*time.Second)
			}
			if err == nil && !ended {
				log.Warn("the keeper did not end in time and is killed", "pid", m.pid)
			}
		}
		closeFD(m.fd)
	}
	return errors.Join(err, sweep(l.ID))
}

// remove removes everything that up made, and gives the lab's network back. Nothing of the lab may run.
func (l *Lab) remove() error {
	for _, p := range parts {
		if err := os.RemoveAll(filepath.Join(l.Dir, p)); err != nil {
			return problem.Errorf(problem.Conflict, "cannot remove the lab's files: %w", err)
		}
	}
	if l.Made {
		// Whoever put something of their own into the folder keeps it.
		if err := os.Remove(l.Dir); !gone(err) && !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
	return l.release()
}
