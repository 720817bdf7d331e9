package bench_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch/patchfile"
)

// packages is how many the patch that is measured carries: random bytes, which no compressor makes smaller.
const packages = 50

const (
	release = "19.09"
	patchID = "BENCH_19.09_PATCH_0001"
	keys    = "../patch/patchfile/testdata/vectors/keys/"
)

// packageSize is 4 MiB.
func packageSize() int { return size(4<<20, 4<<10) }

// makeRPMs makes the packages with so many random bytes each and returns their paths.
func makeRPMs(b *testing.B, dir string, each int) []string {
	b.Helper()
	random := rand.NewChaCha8([32]byte{1})
	var out []string
	for i := range packages {
		body := make([]byte, each)
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

func report(b *testing.B, per, baseline time.Duration, memory int64) {
	b.Helper()
	payload := float64(packages*packageSize()) / 1e6
	b.ReportMetric(payload/per.Seconds(), "MB/s")
	b.ReportMetric(payload/baseline.Seconds(), "baseline-MB/s")
	b.ReportMetric(baseline.Seconds()/per.Seconds(), "x-baseline")
	if memory > 0 {
		b.ReportMetric(mib(memory), "peak-MiB")
	}
}

// BenchmarkPatchBuild makes a patch of 50 packages of 4 MiB, as the baseline does once.
func BenchmarkPatchBuild(b *testing.B) {
	dir := b.TempDir()
	rpms := makeRPMs(b, dir, packageSize())
	baseline, _ := run(b, "/usr/bin/python3", append([]string{"baseline.py", "build", patchID, release, keys + "dev-private-key.pem", dir}, rpms...)...)
	loop(b, baseline, program("patch_build"), buildArgs(dir, rpms)...)
}

func buildArgs(dir string, rpms []string) []string {
	return append([]string{"--id", patchID, "--release", release, "--reboot-required", "N", "--key", keys + "dev-private-key.pem", "--output-dir", dir}, rpms...)
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
func makePatch(b *testing.B, dir string, each int) string {
	b.Helper()
	run(b, program("patch_build"), buildArgs(dir, makeRPMs(b, dir, each))...)
	return filepath.Join(dir, patchID+patchfile.Extension)
}

// BenchmarkQueryPatch verifies the same patch without keeping its packages.
func BenchmarkQueryPatch(b *testing.B) {
	dir := b.TempDir()
	file := makePatch(b, dir, packageSize())
	baseline, _ := run(b, "/usr/bin/python3", "baseline.py", "read", file, keys+"dev-public-key.pem", b.TempDir())
	loop(b, baseline, program("query_patch"), "--file", file, "--key", keys+"dev-public-key.pem")
}

// BenchmarkOpen verifies the same patch and unpacks its packages into files, as an upload does before it makes them durable.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	file := makePatch(b, dir, packageSize())
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
