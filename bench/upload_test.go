package bench_test

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkUpload sends the same patch to a running controller over its socket: verified, durable and visible when it
// returns. The baseline receives, verifies and unpacks it, and makes nothing durable.
func BenchmarkUpload(b *testing.B) {
	dir := b.TempDir()
	file := makePatch(b, dir, packageSize())
	out, err := exec.Command("/usr/bin/python3", "baseline.py", "upload", file, keys+"dev-public-key.pem", b.TempDir()).Output()
	if err != nil {
		b.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	total, added := uploads(b, file)
	report(b, total/time.Duration(b.N), time.Duration(seconds*float64(time.Second)), 0)
	b.ReportMetric(mib(added), "added-MiB")
}

// BenchmarkUploadOfTwoGigabytes is there for what it adds to the controller's memory.
func BenchmarkUploadOfTwoGigabytes(b *testing.B) {
	dir := b.TempDir()
	each := size(2<<30/packages, 4<<10)
	file := makePatch(b, dir, each)
	total, added := uploads(b, file)
	b.ReportMetric(float64(b.N*packages*each)/1e6/total.Seconds(), "MB/s")
	b.ReportMetric(mib(added), "added-MiB")
}

// uploads sends a patch again and again, and says how long that took and how much the controller's resident memory grew
// at most.
func uploads(b *testing.B, file string) (total time.Duration, added int64) {
	b.Helper()
	c := newController(b)
	b.Setenv("STARPATCH_SOCKET", c.socket())
	c.forget()
	idle := c.peak()
	for b.Loop() {
		took, _ := run(b, program("sw-patch"), "upload", file)
		total += took
		b.StopTimer()
		run(b, program("sw-patch"), "delete", patchID)
		b.StartTimer()
	}
	return total, c.peak() - idle
}
