package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// folderBlobs keeps blobs by digest in one folder.
type folderBlobs struct{ dir string }

func (b folderBlobs) Link(digest, dst string) error {
	return os.Link(filepath.Join(b.dir, digest), dst)
}

// put makes an RPM, stores it as a blob and returns what a patch record would say of it.
func (b folderBlobs) put(t testing.TB, name, evr, arch string) patch.Package {
	t.Helper()
	spec := rpmmake.Spec{Name: name, EVR: rpmmake.EVR(evr), Arch: arch,
		Files: []rpmmake.File{{Path: "/opt/" + name, Body: []byte(name + evr)}}}
	raw, err := spec.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	p := patch.Package{File: spec.FileName(), NEVRA: spec.NEVRA(), SHA256: hex.EncodeToString(sum[:]), Size: int64(len(raw)), Built: 1567296000}
	if err := os.WriteFile(filepath.Join(b.dir, p.SHA256), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func applied(id patch.ID, reboot string, pkgs ...patch.Package) patch.Patch {
	return patch.Patch{Metadata: patch.Metadata{ID: id, Release: "19.09", RebootRequired: patch.Some(reboot)}, RepoState: patch.RepoApplied, Packages: pkgs, Changed: 1}
}

// sample is two applied patches, an Available one and one of another release.
func sample(t testing.TB, b folderBlobs) []patch.Patch {
	p1 := applied("P1", "N", b.put(t, "svc", "1.0-2", "noarch"), b.put(t, "lib", "2:1.0-1", "x86_64"))
	p1.Personalities = map[host.Personality][]string{host.Controller: {"svc", "lib"}, host.Storage: {"lib"}}
	p2 := applied("P2", "Y", b.put(t, "kernel", "5.1-1", "x86_64"))
	p3 := applied("P3", "N", b.put(t, "unused", "1-1", "noarch"))
	p3.RepoState = patch.RepoAvailable
	p3.Personalities = map[host.Personality][]string{host.Worker: {"unused"}}
	p4 := applied("P4", "N", b.put(t, "other", "1-1", "noarch"))
	p4.Release = "20.01"
	return []patch.Patch{p1, p2, p3, p4}
}

// tree returns the content of a folder: names, and digests of files.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		out[rel] = digest(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBuildIsAFunctionOfTheGeneration(t *testing.T) {
	blobs := folderBlobs{t.TempDir()}
	patches := sample(t, blobs)
	gone := rpm.NEVRA{Name: "gone", EVR: rpm.EVR{Version: "1", Release: "1"}, Arch: "noarch"}
	var trees []map[string]string
	var built []Built
	for range 3 {
		slices.Reverse(patches)
		b := NewBuilder(filepath.Join(t.TempDir(), "updates"), blobs)
		got, err := b.Build(t.Context(), GenerationOf("19.09", 7, patches, []rpm.NEVRA{gone}))
		if err != nil {
			t.Fatal(err)
		}
		trees, built = append(trees, tree(t, b.Path("19.09", 7))), append(built, got)
	}
	for i := range trees {
		if d := cmp.Diff(trees[i], trees[0]); d != "" {
			t.Errorf("build %d differs: %s", i, d)
		}
		if d := cmp.Diff(built[i], built[0]); d != "" {
			t.Errorf("result %d differs: %s", i, d)
		}
	}
	if got := trees[0]["repodata/repomd.xml"]; got != built[0].RepomdSHA256 {
		t.Errorf("repomd.xml is %s, result says %s", got, built[0].RepomdSHA256)
	}
	for _, f := range built[0].Metadata {
		if trees[0][f.Path] != f.SHA256 {
			t.Errorf("%s is %s, result says %s", f.Path, trees[0][f.Path], f.SHA256)
		}
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(trees[0])) {
		if !strings.HasPrefix(name, "repodata/") {
			names = append(names, name)
		}
	}
	want := []string{"Packages/noarch/svc-1.0-2.noarch.rpm", "Packages/x86_64/kernel-5.1-1.x86_64.rpm", "Packages/x86_64/lib-1.0-1.x86_64.rpm", "comps.xml"}
	if d := cmp.Diff(names, want); d != "" {
		t.Errorf("files (-got +want): %s", d)
	}
}

func TestWhatIsBuiltReadsBack(t *testing.T) {
	blobs := folderBlobs{t.TempDir()}
	gone := rpm.NEVRA{Name: "gone", EVR: rpm.EVR{Version: "1", Release: "1"}, Arch: "noarch"}
	g := GenerationOf("19.09", 3, sample(t, blobs), []rpm.NEVRA{gone})
	b := NewBuilder(t.TempDir(), blobs)
	built, err := b.Build(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(b.Path("19.09", 3))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	md, err := repodata.Load(t.Context(), repodata.Folder(root), built.RepomdSHA256)
	if err != nil {
		t.Fatal(err)
	}
	var packages, brought []string
	for _, p := range md.Packages {
		packages = append(packages, p.NEVRA.String())
	}
	for _, n := range md.Brought {
		brought = append(brought, n.String())
	}
	if d := cmp.Diff(packages, []string{"kernel-5.1-1.x86_64", "lib-2:1.0-1.x86_64", "svc-1.0-2.noarch"}); d != "" {
		t.Errorf("packages (-got +want): %s", d)
	}
	if d := cmp.Diff(brought, []string{"gone-1-1.noarch", "kernel-5.1-1.x86_64", "lib-2:1.0-1.x86_64", "svc-1.0-2.noarch"}); d != "" {
		t.Errorf("brought (-got +want): %s", d)
	}
	if d := cmp.Diff(md.Groups, map[string][]string{"updates-controller": {"lib", "svc"}, "updates-storage": {"lib"}}); d != "" {
		t.Errorf("groups (-got +want): %s", d)
	}
	if md.Revision != 3 {
		t.Errorf("revision %d, want 3", md.Revision)
	}
	if _, err := repodata.Load(t.Context(), repodata.Folder(root), digest([]byte("another"))); !errors.Is(err, repodata.ErrChecksum) {
		t.Errorf("a repomd.xml that was not asked for: %v", err)
	}
}

// dnf runs dnf against the repository alone, as a host would, and returns what it prints.
func dnf(t *testing.T, repository string, args ...string) string {
	t.Helper()
	home := t.TempDir()
	conf := filepath.Join(home, "dnf.conf")
	text := fmt.Sprintf("[main]\ngpgcheck=0\nplugins=0\nreposdir=/nonexistent\nvarsdir=/nonexistent\npluginconfpath=/nonexistent\ncachedir=%[1]s/cache\nlogdir=%[1]s\npersistdir=%[1]s\n[updates]\nname=updates\nbaseurl=file://%[2]s\n", home, repository)
	macros := "%_dbpath /var/lib/rpm\n" // Debian's rpm keeps its database elsewhere
	if err := errors.Join(os.WriteFile(conf, []byte(text), 0o644), os.WriteFile(filepath.Join(home, ".rpmmacros"), []byte(macros), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "dnf", append([]string{"-c", conf, "--installroot=" + filepath.Join(home, "root"), "--releasever=19.09", "--refresh", "-q", "-y"}, args...)...)
	cmd.Env = []string{"HOME=" + home, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("dnf %s: %v\n%s\n%s", strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

func TestDnfAcceptsGenerations(t *testing.T) {
	blobs := folderBlobs{t.TempDir()}
	b := NewBuilder(t.TempDir(), blobs)
	if _, err := b.Build(t.Context(), GenerationOf("19.09", 1, nil, nil)); err != nil {
		t.Fatal(err)
	}
	if got := dnf(t, b.Path("19.09", 1), "repoquery"); got != "" {
		t.Errorf("the empty generation has packages: %s", got)
	}
	if _, err := b.Build(t.Context(), GenerationOf("19.09", 2, sample(t, blobs), nil)); err != nil {
		t.Fatal(err)
	}
	dir := b.Path("19.09", 2)
	if d := cmp.Diff(strings.Fields(dnf(t, dir, "repoquery")), []string{"kernel-0:5.1-1.x86_64", "lib-2:1.0-1.x86_64", "svc-0:1.0-2.noarch"}); d != "" {
		t.Errorf("repoquery (-got +want): %s", d)
	}
	if got := dnf(t, dir, "group", "info", "updates-controller"); !strings.Contains(got, "svc") || !strings.Contains(got, "Patches for controller") || strings.Contains(got, "kernel") {
		t.Errorf("group info: %s", got)
	}
	for id, want := range map[string]string{"P1": "lib-2:1.0-1.x86_64 svc-0:1.0-2.noarch", "P2": "kernel-0:5.1-1.x86_64", "P3": ""} {
		if got := strings.Join(strings.Fields(dnf(t, dir, "repoquery", "--advisory="+id)), " "); got != want {
			t.Errorf("packages of advisory %s: %q, want %q", id, got, want)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("updateinfo list needs a host root, and that needs root")
	}
	old := filepath.Join(blobs.dir, blobs.put(t, "svc", "1.0-1", "noarch").SHA256)
	root := t.TempDir()
	rpm := exec.CommandContext(t.Context(), "rpm", "--root", root, "--dbpath", "/var/lib/rpm", "--force-debian", "--nodeps", "-i", old)
	if out, err := rpm.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info := strings.Join(strings.Fields(dnf(t, dir, "--installroot="+root, "updateinfo", "list")), " ")
	if info != "P1 bugfix svc-1.0-2.noarch" {
		t.Errorf("updateinfo list: %s", info)
	}
}

func TestBuildTwiceIsOneGeneration(t *testing.T) {
	blobs := folderBlobs{t.TempDir()}
	patches := sample(t, blobs)
	b := NewBuilder(t.TempDir(), blobs)
	g := GenerationOf("19.09", 2, patches, nil)
	first, err := b.Build(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(b.Path("19.09", 2))
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Build(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(b.Path("19.09", 2))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(second, first); d != "" || !os.SameFile(before, after) {
		t.Errorf("built again (same folder: %v): %s", os.SameFile(before, after), d)
	}
	t.Run("another content for the same revision replaces the orphan", func(t *testing.T) {
		other, err := b.Build(t.Context(), GenerationOf("19.09", 2, patches[:1], nil))
		if err != nil || other.RepomdSHA256 == first.RepomdSHA256 {
			t.Errorf("got %v, %v", other.RepomdSHA256, err)
		}
	})
	t.Run("so does a damaged package", func(t *testing.T) {
		if _, err := b.Build(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(b.Path("19.09", 2), location(g.Packages[0]))); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Check(t.Context(), g); err == nil {
			t.Error("a generation without one of its packages passed the check")
		}
		if again, err := b.Build(t.Context(), g); err != nil || again.RepomdSHA256 != first.RepomdSHA256 {
			t.Errorf("got %v, %v", again.RepomdSHA256, err)
		}
	})
	entries, err := os.ReadDir(filepath.Join(b.dir, "rel-19.09"))
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestBuildFailsWithoutATrace(t *testing.T) {
	cancelled, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the controller is stopping")
	cancel(why)
	missing := folderBlobs{t.TempDir()}
	g := GenerationOf("19.09", 2, sample(t, missing), nil)
	if err := os.Remove(filepath.Join(missing.dir, g.Packages[0].SHA256)); err != nil {
		t.Fatal(err)
	}
	broken := folderBlobs{t.TempDir()}
	bad := GenerationOf("19.09", 2, sample(t, broken), nil)
	if err := os.WriteFile(filepath.Join(broken.dir, bad.Packages[0].SHA256), []byte("no package"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		ctx   context.Context
		blobs folderBlobs
		g     Generation
		is    error
	}{
		{"a blob is missing", t.Context(), missing, g, fs.ErrNotExist},
		{"a blob is no package", t.Context(), broken, bad, nil},
		{"cancelled", cancelled, broken, bad, why},
		{"unsafe release", t.Context(), broken, Generation{Release: "../x", Revision: 1}, nil},
		{"no revision", t.Context(), broken, Generation{Release: "19.09"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := NewBuilder(t.TempDir(), tc.blobs)
			_, err := b.Build(tc.ctx, tc.g)
			if err == nil || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("got %v, want an error like %v", err, tc.is)
			}
			if left := tree(t, b.dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestADamagedPackageIsNamed(t *testing.T) {
	blobs := folderBlobs{t.TempDir()}
	g := GenerationOf("19.09", 2, sample(t, blobs), nil)
	pkg := g.Packages[0]
	path := filepath.Join(blobs.dir, pkg.SHA256)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = NewBuilder(t.TempDir(), blobs).Build(t.Context(), g)
	if problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), "damaged on the controller's disk: "+pkg.NEVRA.FileName()+"; delete the patches") {
		t.Errorf("got %v", err)
	}
}

type fullDisk struct{ folderBlobs }

func (fullDisk) Link(_, dst string) error {
	return &fs.PathError{Op: "write", Path: dst, Err: syscall.ENOSPC}
}

func TestAFullDiskIsSaidSo(t *testing.T) {
	blobs := folderBlobs{t.TempDir()}
	g := GenerationOf("19.09", 2, sample(t, blobs), nil)
	_, err := NewBuilder(t.TempDir(), fullDisk{blobs}).Build(t.Context(), g)
	if problem.KindOf(err) != problem.Unavailable || !strings.Contains(err.Error(), "the disk is full; free some space") {
		t.Errorf("got %v", err)
	}
}

func TestSweepKeepsOnlyWhatIsAskedFor(t *testing.T) {
	b := NewBuilder(filepath.Join(t.TempDir(), "updates"), folderBlobs{t.TempDir()})
	if err := b.Sweep(nil); err != nil {
		t.Errorf("sweep before anything was built: %v", err)
	}
	for revision := range int64(3) {
		if _, err := b.Build(t.Context(), GenerationOf("19.09", revision+1, nil, nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(b.dir, "rel-19.09", aside+"123"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := b.Sweep(func(release string, revision int64) bool { return release == "19.09" && revision == 2 }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(b.dir, "rel-19.09"))
	if err != nil || len(entries) != 1 || entries[0].Name() != "2" {
		t.Errorf("left: %v, %v", entries, err)
	}
}
