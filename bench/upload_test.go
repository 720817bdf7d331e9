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
	"syscall"
	"testing"
	"time"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/rpmmake"
)

// startController runs a controller of release 19.09 that trusts the test key, until the benchmark ends.
func startController(b *testing.B) (pid int, socket string) {
	b.Helper()
	tool := program(b, "sw-patch-controller")
	dir, err := os.MkdirTemp("", "bench-") // a socket's path must be short
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	key, err := os.ReadFile(keys + "dev-public-key.pem")
	if err != nil {
		b.Fatal(err)
	}
	for _, folder := range []string{"base", "trust/dev"} {
		if err := os.MkdirAll(at(folder), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	// The address is one of loopback's that nobody else uses, so that the default ports are free on it.
	text := fmt.Sprintf("data-dir: %s\nsocket: %s\naddress: 127.193.7.1\nname: controller-0\nrelease: \"19.09\"\ntrust-dir: %s\naccept-dev-signed: true\n", at("data"), at("s"), at("trust"))
	for name, body := range map[string][]byte{"c.yaml": []byte(text), "trust/dev/bench.pem": key} {
		if err := durable.WriteFile(at(name), body, 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := (rpmmake.Spec{Name: "base", EVR: rpmmake.EVR("1-1")}).WriteTo(at("base")); err != nil {
		b.Fatal(err)
	}
	run(b, tool, "init", "--config", at("c.yaml"))

	ready, tell, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, tool, "--config", at("c.yaml"), "--ready-fd", "3")
	cmd.ExtraFiles = []*os.File{tell}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stop()
		if err := cmd.Wait(); err != nil && b.Failed() {
			b.Logf("controller: %v\n%s", err, log.String())
		}
	})
	if err := tell.Close(); err != nil {
		b.Fatal(err)
	}
	line := make([]byte, 16)
	if n, err := ready.Read(line); err != nil || n == 0 {
		b.Fatalf("the controller did not start: %v\n%s", err, log.String())
	}
	if err := ready.Close(); err != nil {
		b.Fatal(err)
	}
	run(b, tool, "feed", "add", "19.09", at("base"), "--config", at("c.yaml"))
	return cmd.Process.Pid, at("s")
}

// peak returns the largest resident memory of a process since the last call of forget, in bytes.
func peak(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n << 10
}

func forget(b *testing.B, pid int) {
	b.Helper()
	const peakOnly = "5"
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte(peakOnly), 0); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkUpload sends the same patch to a running controller over its socket: verified, durable and visible when it
// returns. The baseline receives, verifies and unpacks it, and makes nothing durable.
func BenchmarkUpload(b *testing.B) {
	dir := b.TempDir()
	file := makePatch(b, dir)
	out, err := exec.Command("/usr/bin/python3", "baseline.py", "upload", file, keys+"dev-public-key.pem", b.TempDir()).Output()
	if err != nil {
		b.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	tool := program(b, "sw-patch")
	pid, socket := startController(b)
	b.Setenv("STARPATCH_SOCKET", socket)
	forget(b, pid)
	idle := peak(b, pid)
	var total time.Duration
	for b.Loop() {
		took, _ := run(b, tool, "upload", file)
		total += took
		run(b, tool, "delete", patchID)
	}
	report(b, total/time.Duration(b.N), time.Duration(seconds*float64(time.Second)), 0)
	b.ReportMetric(float64(peak(b, pid)-idle)/(1<<20), "added-MiB")
}
