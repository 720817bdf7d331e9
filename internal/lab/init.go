package lab

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/problem"
)

// systemPath is the PATH of everything that a lab starts.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// initSocket is where a host's init listens, seen from inside the host.
const initSocket = "/run/init.sock"

// bootIDFile is where a host finds the id of its boot: the kernel's is that of the machine.
const bootIDFile = "/run/boot-id"

// serviceDir holds one file per service of a host: the command line that starts it.
const serviceDir = "/etc/lab/services"

// RunInit is the first process of a host. It makes the host's own view of /proc and /dev, empties /run, starts what
// belongs to the host and keeps it running, and reports on the file up when all of it is there. It returns when ctx has
// ended and its processes have; the kernel then ends whatever else still runs in the host.
func RunInit(ctx context.Context, lab *Lab, name string, log *slog.Logger, power, up *os.File) error {
	h, err := lab.Host(name)
	if err != nil {
		return err
	}
	if os.Getpid() != 1 {
		return problem.Errorf(problem.Invalid, "patch-lab init is the first process of a host, started by the lab's keeper; run patch-lab up")
	}
	s, err := boot(lab, h, log, power)
	if err != nil {
		return errors.Join(err, json.NewEncoder(up).Encode(bootReport{Error: err.Error()}))
	}
	return s.run(ctx, up)
}

func boot(lab *Lab, h Host, log *slog.Logger, power *os.File) (*supervisor, error) {
	if _, err := power.Read(make([]byte, 1)); err != nil {
		return nil, problem.Errorf(problem.Unavailable, "the keeper has gone: %w", err)
	}
	if err := power.Close(); err != nil {
		return nil, err
	}
	root := lab.Root(h.Name)
	if err := mounts(root); err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(h.Name)); err != nil {
		return nil, fmt.Errorf("cannot set the host's name: %w", err)
	}
	id := bootID()
	if err := emptyRun(root, id); err != nil {
		return nil, err
	}
	control, err := listen(filepath.Join(root, initSocket))
	if err != nil {
		return nil, fmt.Errorf("cannot open the host's control socket: %w", err)
	}
	units, err := unitsOf(lab, h)
	if err != nil {
		return nil, errors.Join(err, control.Close())
	}
	log.Info("booted", "host", h.Name, "boot_id", id)
	return newSupervisor(id, units, control, log), nil
}

// bootID makes a new id in the form of the kernel's.
func bootID() string {
	var b [16]byte
	rand.Read(b[:])                             // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// mounts gives the host its own /proc, in the machine's tree too because the agent runs there, and its own /dev. All of
// it is private to the host's mount namespace and ends with it.
func mounts(root string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot separate the host's mounts from the machine's: %w", err)
	}
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, m := range []struct {
		kind, at string
		flags    uintptr
		data     string
	}{
		{"proc", "/proc", plain, ""},
		{"proc", filepath.Join(root, "proc"), plain, ""},
		{"tmpfs", filepath.Join(root, "dev"), unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755,size=64k"},
	} {
		if err := unix.Mount(m.kind, m.at, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("cannot mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		path := filepath.Join(root, "dev", d.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("cannot make the device %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // mknod obeys the umask
			return err
		}
	}
	for name, to := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(to, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	return nil
}

// emptyRun makes /run what it is after a boot. It is a folder and no tmpfs so that it can be looked at from outside.
func emptyRun(root, id string) error {
	run := filepath.Join(root, "run")
	entries, err := os.ReadDir(run)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(run, e.Name())); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		name string
		mode fs.FileMode
	}{{"lock", 0o755}, {"patching", 0o700}} {
		if err := os.Mkdir(filepath.Join(run, d.name), d.mode); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, bootIDFile), []byte(id+"\n"), 0o644)
}

// unitsOf lists what runs on a host: the controller and the agent, as far as they are set up, in the machine's tree, and
// the services in the host's own.
//
// A controller is ready when it answers, an agent when its first report was acknowledged: so a host is up when the
// controller knows it as it is.
func unitsOf(lab *Lab, h Host) ([]*unit, error) {
	var units []*unit
	if h.Name == firstController && !lab.Bare {
		units = append(units, &unit{
			name: "sw-patch-controller", argv: []string{lab.program("sw-patch-controller"), "--config", lab.controllerConfig(), "--ready-fd", "3"},
			needs: lab.controllerConfig(), tells: true, log: lab.logFile(h.Name, "sw-patch-controller"),
		})
	}
	if !lab.Bare {
		units = append(units, &unit{
			name: "sw-patch-agent", argv: []string{lab.program("sw-patch-agent"), "--config", lab.agentConfig(h.Name), "--ready-fd", "3"},
			needs: lab.agentConfig(h.Name), tells: true, log: lab.logFile(h.Name, "sw-patch-agent"),
		})
	}
	root := lab.Root(h.Name)
	services, err := os.ReadDir(filepath.Join(root, serviceDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, s := range services {
		line, err := os.ReadFile(filepath.Join(root, serviceDir, s.Name()))
		if err != nil {
			return nil, err
		}
		argv := strings.Fields(string(line))
		if len(argv) == 0 || !strings.HasPrefix(argv[0], "/") {
			return nil, problem.Errorf(problem.Invalid, "%s/%s holds no command line that starts with an absolute path", serviceDir, s.Name())
		}
		units = append(units, &unit{
			name: s.Name(), argv: argv, root: root, tells: true, log: lab.logFile(h.Name, s.Name()),
			env: []string{"LAB_ADDRESS=" + fmt.Sprintf("%s:%d", h.Address, servicePort+lab.PortOffset), "LAB_READY_FD=3"},
		})
	}
	return units, nil
}
