package bench_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch/patchfile"
)

// The patch that is measured: packages of random bytes, which no compressor makes smaller.
const (
	packages    = 50
	packageSize = 4 << 20
	payload     = packages * packageSize
)

const (
	patchID = "BENCH_19.09_PATCH_0001"
	keys    = "../patch/patchfile/testdata/vectors/keys/"
)

// makeRPMs makes the packages and returns their paths.
func makeRPMs(b *testing.B, dir string) []string {
	b.Helper()
	random := rand.NewChaCha8([32]byte{1})
	var out []string
	for i := range packages {
		body := make([]byte, packageSize)
		if _, err := random.Read(body); err != nil {
			b.Fatal(err)
		}
		s := rpmmake.Spec{Name: fmt.Sprintf("bench-%02d", i), EVR: rpmmake.EVR("1.0-2"), Files: []rpmmake.File{{Path: fmt.Sprintf("/opt/bench/%02d", i), Body: body}}}
		path, err := s.WriteTo(dir)
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, path)
	}
	return out
}

// program builds a command of this module.
func program(b *testing.B, name string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "../cmd/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return path
}

// run runs a program and returns how long it took and its largest resident memory in bytes. A small process starts it,
// because Linux counts the memory of the starter, and this one holds the packages.
func run(b *testing.B, name string, args ...string) (time.Duration, int64) {
	b.Helper()
	cmd := exec.Command("/usr/bin/python3", append([]string{"baseline.py", "measure", name}, args...)...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("%s: %v: %s", name, err, errors.String())
	}
	var seconds float64
	var memory int64
	if _, err := fmt.Sscan(string(out), &seconds, &memory); err != nil {
		b.Fatalf("%s: %v in %q", name, err, out)
	}
	return time.Duration(seconds * float64(time.Second)), memory
}

func report(b *testing.B, per, baseline time.Duration, memory int64) {
	b.Helper()
	b.ReportMetric(payload/1e6/per.Seconds(), "MB/s")
	b.ReportMetric(payload/1e6/baseline.Seconds(), "baseline-MB/s")
	b.ReportMetric(baseline.Seconds()/per.Seconds(), "x-baseline")
	if memory > 0 {
		b.ReportMetric(float64(memory)/(1<<20), "peak-MiB")
	}
}

// BenchmarkPatchBuild makes a patch of 50 packages of 4 MiB, as the baseline does once.
func BenchmarkPatchBuild(b *testing.B) {
	dir := b.TempDir()
	rpms := makeRPMs(b, dir)
	tool := program(b, "patch_build")
	baseline, _ := run(b, "/usr/bin/python3", append([]string{"baseline.py", "build", patchID, "19.09", keys + "dev-private-key.pem", dir}, rpms...)...)
	args := append([]string{"--id", patchID, "--release", "19.09", "--reboot-required", "N", "--key", keys + "dev-private-key.pem", "--output-dir", dir}, rpms...)
	loop(b, baseline, tool, args...)
}

// loop measures a program.
func loop(b *testing.B, baseline time.Duration, name string, args ...string) {
	b.Helper()
	var total time.Duration
	var memory int64
	for b.Loop() {
		took, rss := run(b, name, args...)
		total, memory = total+took, max(memory, rss)
	}
	report(b, total/time.Duration(b.N), baseline, memory)
}

// makePatch makes the patch once and returns its path.
func makePatch(b *testing.B, dir string) string {
	b.Helper()
	run(b, program(b, "patch_build"), append([]string{"--id", patchID, "--release", "19.09", "--reboot-required", "N", "--key", keys + "dev-private-key.pem", "--output-dir", dir}, makeRPMs(b, dir)...)...)
	return filepath.Join(dir, patchID+patchfile.Extension)
}

// BenchmarkQueryPatch verifies the same patch without keeping its packages.
func BenchmarkQueryPatch(b *testing.B) {
	dir := b.TempDir()
	file := makePatch(b, dir)
	tool := program(b, "query_patch")
	baseline, _ := run(b, "/usr/bin/python3", "baseline.py", "read", file, keys+"dev-public-key.pem", b.TempDir())
	loop(b, baseline, tool, "--file", file, "--key", keys+"dev-public-key.pem")
}

// BenchmarkOpen verifies the same patch and unpacks its packages into files, as an upload does before it makes them durable.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	file := makePatch(b, dir)
	baseline, _ := run(b, "/usr/bin/python3", "baseline.py", "read", file, keys+"dev-public-key.pem", b.TempDir())
	text, err := os.ReadFile(keys + "dev-public-key.pem")
	if err != nil {
		b.Fatal(err)
	}
	key, err := patchfile.ParseKey(text)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		in, err := os.Open(file)
		if err != nil {
			b.Fatal(err)
		}
		p, err := patchfile.Open(struct{ io.Reader }{in}, folder(b.TempDir()), patchfile.Options{Stem: patchID, Trust: patchfile.Trust{Dev: []patchfile.Key{key}}, Fanout: fanout.New})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		if err := in.Close(); err != nil {
			b.Fatal(err)
		}
	}
	report(b, b.Elapsed()/time.Duration(b.N), baseline, 0)
}

// folder is a spool of plain files.
type folder string

func (f folder) Create(name string) (patchfile.SpoolFile, error) {
	return os.Create(filepath.Join(string(f), name))
}

func (f folder) Discard() error { return os.RemoveAll(string(f)) }
