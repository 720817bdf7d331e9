package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

// address is one of loopback's that no other process uses, so that the default ports are free on it.
func address() string {
	pid := os.Getpid()
	return fmt.Sprintf("127.253.%d.%d", pid/250%250, 1+pid%250)
}

// controller is the real program with release 19.09 and the test key, until the benchmark ends.
type controller struct {
	b      *testing.B
	dir    string
	client *client.Client
	cmd    *exec.Cmd // nil: it does not run
	log    bytes.Buffer
}

// newController prepares a controller and starts it.
func newController(b *testing.B) *controller {
	b.Helper()
	dir, err := os.MkdirTemp("", "bench-") // a socket's path must be short
	if err != nil {
		b.Fatal(err)
	}
	c := &controller{b: b, dir: dir}
	c.client = client.Unix(c.socket())
	b.Cleanup(func() {
		c.client.CloseIdle()
		c.end(os.Interrupt)
		if b.Failed() {
			b.Logf("the controller said:\n%s", c.log.String())
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	key, err := os.ReadFile(keys + "dev-public-key.pem")
	if err != nil {
		b.Fatal(err)
	}
	for _, folder := range []string{"base", "trust/dev"} {
		if err := os.MkdirAll(c.at(folder), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	text := fmt.Sprintf("data-dir: %s\nsocket: %s\naddress: %s\nname: controller-0\nrelease: \"%s\"\ntrust-dir: %s\naccept-dev-signed: true\n", c.at("data"), c.socket(), address(), release, c.at("trust"))
	for name, body := range map[string][]byte{"c.yaml": []byte(text), "trust/dev/bench.pem": key} {
		if err := durable.WriteFile(c.at(name), body, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := (rpmmake.Spec{Name: "base", EVR: rpmmake.EVR("1-1")}).WriteTo(c.at("base")); err != nil {
		b.Fatal(err)
	}
	run(b, program("sw-patch-controller"), "init", "--config", c.at("c.yaml"))
	c.start()
	if _, err := c.client.AddFeed(context.Background(), release, c.at("base")); err != nil {
		b.Fatal(err)
	}
	return c
}

func (c *controller) at(name string) string { return filepath.Join(c.dir, name) }

func (c *controller) socket() string { return c.at("s") }

// start returns when the controller is ready.
func (c *controller) start() {
	c.b.Helper()
	ready, tell, err := os.Pipe()
	if err != nil {
		c.b.Fatal(err)
	}
	c.log.Reset()
	c.cmd = exec.Command(program("sw-patch-controller"), "--config", c.at("c.yaml"), "--ready-fd", "3")
	c.cmd.ExtraFiles = []*os.File{tell}
	c.cmd.Stderr = &c.log
	if err := c.cmd.Start(); err != nil {
		c.b.Fatal(err)
	}
	if err := tell.Close(); err != nil {
		c.b.Fatal(err)
	}
	line := make([]byte, 16)
	if n, err := ready.Read(line); err != nil || n == 0 {
		c.b.Fatalf("the controller did not start: %v", err)
	}
	if err := ready.Close(); err != nil {
		c.b.Fatal(err)
	}
}

// end sends the controller a signal and waits for it to end.
func (c *controller) end(signal os.Signal) {
	c.b.Helper()
	if c.cmd == nil {
		return
	}
	if err := c.cmd.Process.Signal(signal); err != nil {
		c.b.Error(err)
	}
	if err := c.cmd.Wait(); err != nil && signal != os.Kill {
		c.b.Errorf("the controller ended with %v", err)
	}
	c.cmd = nil
}

// status is a number of bytes that Linux tells of a process, like VmHWM, the largest resident memory.
func status(b *testing.B, pid int, name string) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\n"+name+":")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n << 10
}

// peak returns the largest resident memory since the last call of forget, in bytes.
func (c *controller) peak() int64 { return status(c.b, c.cmd.Process.Pid, "VmHWM") }

func (c *controller) forget() {
	c.b.Helper()
	const peakOnly = "5"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.cmd.Process.Pid), []byte(peakOnly), 0); err != nil {
		c.b.Fatal(err)
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
