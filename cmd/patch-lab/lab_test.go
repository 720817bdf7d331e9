package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The tests run patch-lab as an operator does: this test binary, called patch-lab, is it. Hosts are bare, so that only
// the lab itself is tested; the agent and the controller on top of it are e2e's. All run at once: labs do not disturb
// each other.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "patch-lab" {
		os.Exit(run())
	}
	code, err := withService(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// binVar names the environment variable with the folder that holds the program of the lab's service.
const binVar = "PATCH_LAB_TEST_BIN"

// withService builds the program that the hosts' packages carry, once for all tests.
func withService(m *testing.M) (code int, err error) {
	bin, err := os.MkdirTemp("", "lab-bin")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bin)) }()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "github.com/starpatch/starpatch/cmd/lab-service")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go build: %w\n%s", err, out)
	}
	if err := os.Setenv(binVar, bin); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// hang bounds a command that would otherwise hang a test for ever.
const hang = 2 * time.Minute

type cluster struct {
	t        *testing.T
	dir, bin string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("hosts need root")
	}
	return &cluster{t: t, dir: filepath.Join(t.TempDir(), "lab"), bin: os.Getenv(binVar)}
}

// up starts a lab, and takes it down when the test ends.
func (c *cluster) up(args ...string) {
	c.t.Helper()
	c.t.Cleanup(func() {
		if got := c.run("down", "--dir", c.dir); got.code != 0 {
			c.t.Errorf("down: %+v", got)
		}
	})
	c.must(append([]string{"up", "--bare", "--bin", c.bin, "--dir", c.dir}, args...)...)
}

type result struct {
	out, err string
	code     int
}

func (c *cluster) run(args ...string) result {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), hang)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = append([]string{"patch-lab"}, args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // with the race detector a process takes a second to end
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited || ctx.Err() != nil {
		c.t.Fatalf("patch-lab %s: %v %v\n%s%s", strings.Join(args, " "), err, ctx.Err(), &out, &errs)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (c *cluster) must(args ...string) string {
	c.t.Helper()
	got := c.run(args...)
	if got.code != 0 {
		c.t.Fatalf("patch-lab %s: %+v", strings.Join(args, " "), got)
	}
	return got.out
}

func (c *cluster) refused(want string, args ...string) {
	c.t.Helper()
	if got := c.run(args...); got.code != 1 || !strings.Contains(got.err, want) {
		c.t.Errorf("patch-lab %s: got %+v, want exit code 1 and %q", strings.Join(args, " "), got, want)
	}
}

func (c *cluster) exec(host string, argv ...string) string {
	c.t.Helper()
	return c.must(append([]string{"exec", "--dir", c.dir, host, "--"}, argv...)...)
}

func (c *cluster) bootID(host string) string {
	c.t.Helper()
	return strings.TrimSpace(c.exec(host, "cat", "/run/boot-id"))
}

type labFile struct {
	ID    string `json:"id"`
	Hosts []struct {
		Name    string `json:"name"`
		Address string `json:"address"`
	} `json:"hosts"`
}

func (c *cluster) read() labFile {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "lab.json"))
	if err != nil {
		c.t.Fatal(err)
	}
	var f labFile
	if err := json.Unmarshal(text, &f); err != nil {
		c.t.Fatal(err)
	}
	return f
}

func (f labFile) address(host string) string {
	for _, h := range f.Hosts {
		if h.Name == host {
			return h.Address
		}
	}
	return ""
}

// processes finds the keeper and the inits of a lab by what their environment says; the role is keeper or init.
func processes(t *testing.T, id, role string) []int {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		env := strings.Split(string(text), "\x00")
		if slices.Contains(env, "STARPATCH_LAB="+id) && (role == "" || slices.Contains(env, "STARPATCH_LAB_ROLE="+role)) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill kills processes and returns when they have ended.
func kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
			t.Fatal(err)
		}
		ended(t, fd)
	}
}

// ended returns when the process of a descriptor has ended, and closes it.
func ended(t *testing.T, fd int) {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(hang.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("the process does not end: %v", err)
		}
		if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		return
	}
}

// nothingLeft checks that no process, mount, folder or claim of a lab is there any more.
func (c *cluster) nothingLeft(id string) {
	c.t.Helper()
	if pids := processes(c.t, id, ""); len(pids) > 0 {
		c.t.Errorf("processes left behind: %v", pids)
	}
	// Every process's mounts: a namespace that is held by nobody but a forgotten process shows here.
	tables, err := filepath.Glob("/proc/[0-9]*/mounts")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, table := range tables {
		if text, err := os.ReadFile(table); err == nil && strings.Contains(string(text), c.dir+"/") {
			c.t.Errorf("%s still has mounts of the lab:\n%s", table, text)
		}
	}
	for _, path := range []string{c.dir, "/run/patch-lab/" + id} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			c.t.Errorf("%s is still there (%v)", path, err)
		}
	}
}

// told asks a host's service for its version, from outside.
func told(t *testing.T, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+":9090/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(body))
}

func rpm(t *testing.T, root string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "rpm", append([]string{"--root", root, "--dbpath", "/var/lib/rpm", "--force-debian"}, args...)...)
	cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("rpm %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestALabIsRealHostsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.up("--topology", "1+1+1")
	f := c.read()

	t.Log("every host has 20 packages, as installed, and its own identity")
	for _, h := range f.Hosts {
		root := filepath.Join(c.dir, "hosts", h.Name, "root")
		if n := len(strings.Fields(rpm(t, root, "-qa"))); n != 20 {
			t.Errorf("%s: got %d packages, want 20", h.Name, n)
		}
		if got := rpm(t, root, "-Va"); got != "" {
			t.Errorf("%s: rpm -Va says\n%s", h.Name, got)
		}
		if got := strings.TrimSpace(c.exec(h.Name, "hostname")); got != h.Name {
			t.Errorf("%s: got host name %q", h.Name, got)
		}
		if got := told(t, h.Address); got != "1.0-1" {
			t.Errorf("%s: got service version %q, want 1.0-1", h.Name, got)
		}
	}
	if got := c.exec("storage-0", "sh", "-c", ". /etc/platform/platform.conf; . /etc/build.info; echo $nodetype $subfunction $SW_VERSION"); got != "storage storage 19.09\n" {
		t.Errorf("platform files: got %q", got)
	}

	t.Log("exec passes arguments, output and the exit code on")
	for _, e := range []struct {
		argv []string
		want result
	}{
		{[]string{"echo", "a b", "--dir", "$HOME"}, result{"a b --dir $HOME\n", "", 0}},
		{[]string{"sh", "-c", "echo no >&2; exit 7"}, result{"", "no\n", 7}},
		{[]string{"sh", "-c", "kill -9 $$"}, result{"", "", 137}},
		{[]string{"/bin/bash", "-c", "echo $BASH_VERSION | cut -c1"}, result{"5\n", "", 0}},
	} {
		got := c.run(append([]string{"exec", "--dir", c.dir, "compute-0", "--"}, e.argv...)...)
		if diff := cmp.Diff(e.want, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("%v (-want +got):\n%s", e.argv, diff)
		}
	}
	if got := c.run("exec", "--dir", c.dir, "compute-0", "--", "no-such-command"); got.code != 127 {
		t.Errorf("a command that is not there: got %+v, want exit code 127", got)
	}
	c.refused(`has no host "compute-9"; its hosts are compute-0, controller-0, storage-0`, "exec", "--dir", c.dir, "compute-9", "--", "true")

	t.Log("a reboot ends everything, empties /run and changes the boot id")
	before := c.bootID("compute-0")
	c.exec("compute-0", "sh", "-c", "touch /run/gone /var/kept; nohup sleep 1000 >/dev/null 2>&1 &")
	c.exec("compute-0", "reboot")
	if after := c.bootID("compute-0"); after == before {
		t.Errorf("the boot id is still %s", after)
	}
	if got := c.exec("compute-0", "sh", "-c", "ls /run/gone /var/kept 2>/dev/null; pidof sleep; true"); got != "/var/kept\n" {
		t.Errorf("after the reboot: got %q, want only /var/kept", got)
	}

	t.Log("a host that reboots itself comes back too")
	before = c.bootID("storage-0")
	if got := c.run("exec", "--dir", c.dir, "storage-0", "--", "/usr/sbin/reboot"); got.code != 0 && got.code != 137 {
		t.Errorf("reboot from inside: %+v", got)
	}
	c.exec("storage-0", "reboot") // returns after both
	if after := c.bootID("storage-0"); after == before {
		t.Errorf("the boot id is still %s", after)
	}

	c.refused("holds a lab already; patch-lab down --dir "+c.dir, "up", "--bare", "--bin", c.bin, "--dir", c.dir)
	env := c.must("env", "--dir", c.dir)
	for _, want := range []string{"export PATH='" + c.bin + "':\"$PATH\"\n", "export LAB_RELEASE='19.09'\n", "export LAB_DIR='" + c.dir + "'\n", "export STARPATCH_SOCKET='/run/patch-lab/"} {
		if !strings.Contains(env, want) {
			t.Errorf("env does not print %q:\n%s", want, env)
		}
	}
	status := c.must("status", "--dir", c.dir)
	for _, h := range f.Hosts {
		if !strings.Contains(status, h.Name) || !strings.Contains(status, h.Address) {
			t.Errorf("status does not show %s:\n%s", h.Name, status)
		}
	}

	if got := c.must("down", "--dir", c.dir); got != "everything has ended and is removed\n" {
		t.Errorf("down: got %q", got)
	}
	c.nothingLeft(f.ID)
	if got := c.must("down", "--dir", c.dir); got != "there is no lab in "+c.dir+"\n" {
		t.Errorf("down again: got %q", got)
	}
	c.refused("there is no lab in "+c.dir, "status", "--dir", c.dir)
}

func TestOnlyANewProcessTellsANewVersion(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.up("--topology", "1+0")
	root := filepath.Join(c.dir, "hosts/controller-0/root")
	address := c.read().address("controller-0")
	v2 := strings.TrimSpace(c.must("rpm", "--bin", c.bin, "--output-dir", t.TempDir(), "demo-service", "1.0-2"))

	// The agent would bring this along.
	functions, err := os.ReadFile("../../internal/agent/shell/patch-functions")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/patching/patch-functions"), functions, 0o644); err != nil {
		t.Fatal(err)
	}

	rpm(t, root, "-U", v2)
	if got := told(t, address); got != "1.0-1" {
		t.Errorf("after the upgrade the old process: got %q, want 1.0-1", got)
	}
	// What the package's scriptlet left there is what an agent runs after an installation.
	c.exec("controller-0", "bash", "/run/patching/patch-scripts/demo-service")
	if got := told(t, address); got != "1.0-2" {
		t.Errorf("after the patch script: got %q, want 1.0-2", got)
	}
	c.exec("controller-0", "rm", "-r", "/run/patching/patch-scripts")
	rpm(t, root, "-U", "--oldpackage", filepath.Join(c.dir, "feed/demo-service-1.0-1.x86_64.rpm"))
	c.exec("controller-0", "bash", "/run/patching/patch-scripts/demo-service")
	if got := told(t, address); got != "1.0-1" {
		t.Errorf("after the removal: got %q, want 1.0-1", got)
	}
	if got := rpm(t, root, "-Va"); got != "" {
		t.Errorf("rpm -Va says\n%s", got)
	}
	if got := c.run("exec", "--dir", c.dir, "controller-0", "--", "patch-restart-processes", "nothing"); got.code != 1 || !strings.Contains(got.err, `nothing on this host is called "nothing"`) {
		t.Errorf("restarting what is not there: got %+v", got)
	}
}

func TestKillsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	t.Run("a host whose init is killed starts again", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		c.up("--topology", "1+0")
		before, id := c.bootID("controller-0"), c.read().ID
		kill(t, processes(t, id, "init")...)
		if after := c.bootID("controller-0"); after == before { // exec waits until the host is up
			t.Errorf("the boot id is still %s", after)
		}
		c.must("down", "--dir", c.dir)
		c.nothingLeft(id)
	})
	t.Run("the hosts end with their keeper, and down cleans up", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		c.up("--topology", "1+1")
		id := c.read().ID
		var inits []int
		for _, pid := range processes(t, id, "init") {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			inits = append(inits, fd)
		}
		if len(inits) != 2 {
			t.Fatalf("got %d inits, want 2", len(inits))
		}
		kill(t, processes(t, id, "keeper")...)
		for _, fd := range inits {
			ended(t, fd)
		}
		c.refused("its keeper has gone; patch-lab down --dir "+c.dir+" removes it", "status", "--dir", c.dir)
		c.refused("its keeper has gone", "exec", "--dir", c.dir, "controller-0", "--", "true")
		c.must("down", "--dir", c.dir)
		c.nothingLeft(id)
	})
	t.Run("a lab whose folder was deleted can be taken down", func(t *testing.T) {
		t.Parallel()
		c := newCluster(t)
		c.up("--topology", "1+0")
		id := c.read().ID
		if err := os.RemoveAll(c.dir); err != nil {
			t.Fatal(err)
		}
		c.refused("still runs; patch-lab down --dir "+c.dir+" ends it", "up", "--bare", "--bin", c.bin, "--dir", c.dir)
		c.must("down", "--dir", c.dir)
		c.nothingLeft(id)
	})
}

func TestAnInterruptedUpLeavesNothing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = []string{"patch-lab", "up", "--bare", "--bin", c.bin, "--dir", c.dir}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Signalled at whatever it is doing by then: it was told to stop, and it stops.
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted up ended without an error")
	}
	if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there (%v): %s", c.dir, err, &errs)
	}
}

func TestTwoLabsDoNotDisturbEachOther(t *testing.T) {
	t.Parallel()
	a, b := newCluster(t), newCluster(t)
	a.up("--topology", "1+0")
	b.up("--topology", "1+0")
	fa, fb := a.read(), b.read()
	if fa.ID == fb.ID || fa.address("controller-0") == fb.address("controller-0") {
		t.Fatalf("both labs have id %s and address %s", fa.ID, fa.address("controller-0"))
	}
	boot := b.bootID("controller-0")
	a.must("down", "--dir", a.dir)
	a.nothingLeft(fa.ID)
	if got := b.bootID("controller-0"); got != boot {
		t.Errorf("taking one lab down rebooted the other: boot id %s, want %s", got, boot)
	}
	if got := told(t, fb.address("controller-0")); got != "1.0-1" {
		t.Errorf("the other lab's service: got %q, want 1.0-1", got)
	}
}

func TestHostsWithTheirOwnNetworkReachEachOtherOnly(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	links := func() string {
		out, err := exec.CommandContext(t.Context(), "ip", "-o", "link").Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	before := links()
	c.up("--topology", "1+1", "--netns")
	if diff := cmp.Diff(before, links()); diff != "" {
		t.Errorf("the machine's own interfaces (-before +after):\n%s", diff)
	}
	f := c.read()
	for _, boot := range []string{"first", "second"} {
		if got := c.exec("compute-0", "wget", "-q", "-O", "-", "http://"+f.address("controller-0")+":9090/"); got != "1.0-1\n" {
			t.Errorf("%s boot: got %q, want 1.0-1", boot, got)
		}
		c.exec("controller-0", "reboot")
	}
	c.must("down", "--dir", c.dir)
	c.nothingLeft(f.ID)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	bin := c.bin
	empty, twice := t.TempDir(), t.TempDir()
	for _, name := range []string{"a-1-1.noarch.rpm", "a-2-1.noarch.rpm"} {
		if err := os.WriteFile(filepath.Join(twice, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []struct {
		want string
		args []string
	}{
		{`required flag(s) "dir" not set`, []string{"up"}},
		{`"6" is not a topology`, []string{"up", "--dir", c.dir, "--topology", "6"}},
		{"expected 0 to", []string{"up", "--dir", c.dir, "--bare", "--bin", bin, "--port-base", "-1"}},
		{"exclude each other", []string{"up", "--dir", c.dir, "--bare", "--bin", bin, "--netns", "--compat"}},
		{"the program sw-patch-controller is not in " + bin, []string{"up", "--dir", c.dir, "--bin", bin}},
		{"holds no file whose name ends in .rpm", []string{"up", "--dir", c.dir, "--bare", "--bin", bin, "--feed", empty}},
		{"a host can have only one of them", []string{"up", "--dir", c.dir, "--bare", "--bin", bin, "--feed", twice}},
		{`the lab has no package "bash" of its own; expected one of demo-service, lab-api`, []string{"rpm", "--bin", bin, "bash", "1-1"}},
		{`"2" is not a version; expected VERSION-RELEASE`, []string{"rpm", "--bin", bin, "demo-service", "2"}},
		{"received 1; usage: patch-lab rpm NAME VERSION-RELEASE", []string{"rpm", "demo-service"}},
		{"usage: patch-lab exec --dir DIR HOST -- COMMAND", []string{"exec", "--dir", c.dir, "controller-0"}},
	} {
		c.refused(r.want, r.args...)
		if _, err := os.Stat(c.dir); !os.IsNotExist(err) {
			t.Errorf("%v left %s behind (%v)", r.args, c.dir, err)
		}
	}
}

func TestUpTouchesNothingOfAnybodyElses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, name := range []string{"hosts", "log", "feed", "trust", "keys"} {
		dir := t.TempDir()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.refused(dir+" has "+name+" already", "up", "--dir", dir, "--bare", "--bin", c.bin)
		c.run("down", "--dir", dir)
		if text, err := os.ReadFile(file); err != nil || string(text) != "mine" {
			t.Errorf("%s: now %q, %v", name, text, err)
		}
	}
}
