package controller

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/patch/patchfile/patchfiletest"
	"github.com/starpatch/starpatch/problem"
)

const vectors = "../../patch/patchfile/testdata/vectors/"

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vector is one of the original's patches.
func vector(t testing.TB, number string) (name string, content []byte) {
	t.Helper()
	name = "PEER_19.09_PATCH_" + number + ".patch"
	return name, readFile(t, vectors+"patches/"+name)
}

// trustVectors has the rig accept the original's patches.
func (r *rig) trustVectors() {
	r.t.Helper()
	k, err := patchfile.ParseKey(readFile(r.t, vectors+"keys/dev-cert.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	f, err := patchfile.ParseKey(readFile(r.t, vectors+"keys/formal-cert.pem"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.trust.set(patchfile.Trust{Dev: []patchfile.Key{k}, Formal: []patchfile.Key{f}})
}

// rewritten is a vector with other metadata, signed anew.
func rewritten(t testing.TB, content []byte, change func(*patch.Metadata)) []byte {
	t.Helper()
	key, err := patchfile.ParseSigningKey(readFile(t, vectors+"keys/dev-private-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := patchfile.NewKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	f, err := patchfile.Open(bytes.NewReader(content), &patchfiletest.Spool{}, patchfile.Options{Trust: patchfile.Trust{Dev: []patchfile.Key{pub}}, KeepTars: true})
	if err != nil {
		t.Fatal(err)
	}
	m := f.Metadata
	change(&m)
	var out bytes.Buffer
	if err := f.Rewrite(&out, m, key, patchfile.BuildOptions{}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func (r *rig) upload(name string, content []byte) (info, refusal string) {
	r.t.Helper()
	m, err := r.Upload(context.Background(), "uid 0", name, bytes.NewReader(content))
	if err != nil {
		return "", err.Error()
	}
	return m.Info, m.Error
}

// sound fails the test when an upload left something that no record names.
func (r *rig) sound() {
	r.t.Helper()
	if left := r.blobs.left(); len(left) > 0 {
		r.t.Errorf("spooled files are left: %v", left)
	}
	known := r.snap.Load().named()
	r.blobs.mu.Lock()
	defer r.blobs.mu.Unlock()
	for d := range r.blobs.have {
		if !known(d) {
			r.t.Errorf("no record names blob %s", d)
		}
	}
}

func TestAReimportChangesStatusAndTextsOnly(t *testing.T) {
	r := newRig(t)
	r.trustVectors()
	name, content := vector(t, "0001")
	id := strings.TrimSuffix(name, ".patch")
	if _, refusal := r.upload(name, content); refusal != "" {
		t.Fatal(refusal)
	}
	r.mustApply(id)
	before := r.snap.Load().patches[patch.ID(id)]
	obsolete := rewritten(t, content, func(m *patch.Metadata) { m.Status, m.Summary = patch.Some("OBS"), patch.Some("withdrawn") })
	info, refusal := r.upload(id+".zip", obsolete) // the extension of a known patch does not matter
	if want := id + " is already imported. Updated metadata only\n"; info != want || refusal != "" {
		t.Fatalf("got %q %q, want %q", info, refusal, want)
	}
	after := r.snap.Load().patches[patch.ID(id)]
	if after.Status.Value != "OBS" || after.Summary.Value != "withdrawn" || after.RepoState != patch.RepoApplied || after.Changed != before.Changed {
		t.Errorf("after the re-import: %+v", after)
	}
	if after.XML == before.XML {
		t.Error("the metadata is still the old one")
	}
	r.sweepBlobs()
	for _, d := range []string{before.XML, after.XML} {
		if !r.blobs.has(d) {
			t.Errorf("metadata %s was not kept", d)
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*patch.Metadata)
		want   string
	}{
		{"another release", func(m *patch.Metadata) { m.Release = "20.01" }, "Contents of " + id + " do not match re-imported patch: release differs"},
		{"reboot-required", func(m *patch.Metadata) { m.RebootRequired = patch.Some("Y") }, "reboot-required differs"},
		{"another requirement", func(m *patch.Metadata) { m.Requires = []patch.ID{"OTHER"} }, "requirements differ"},
	} {
		t.Run(tt.name+" is refused", func(t *testing.T) {
			info, refusal := r.upload(name, rewritten(t, content, tt.change))
			if info != "" || !strings.Contains(refusal, tt.want) {
				t.Errorf("got %q %q, want a refusal with %q", info, refusal, tt.want)
			}
		})
	}
	if got := r.snap.Load().patches[patch.ID(id)]; got.Status.Value != "OBS" || got.Release != "19.09" {
		t.Errorf("a refused re-import changed something: %+v", got)
	}
	r.restart()
	if got := r.snap.Load().patches[patch.ID(id)]; got.Status.Value != "OBS" || got.RepoState != patch.RepoApplied {
		t.Errorf("after a restart: %+v", got)
	}
	r.sound()
}

func TestUploadsOfOnePatchAtTheSameTime(t *testing.T) {
	r := newRig(t)
	r.trustVectors()
	name, content := vector(t, "0001")
	id := strings.TrimSuffix(name, ".patch")
	var mu sync.Mutex
	said := map[string]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			m, err := r.Upload(context.Background(), "uid 0", name, bytes.NewReader(content))
			mu.Lock()
			defer mu.Unlock()
			if err != nil || m.Error != "" {
				t.Error(err, m.Error)
			}
			said[m.Info]++
		})
	}
	wg.Wait()
	if said[id+" is now available\n"] != 1 || said[id+" is already imported. Updated metadata only\n"] != 7 {
		t.Errorf("one is new and seven are re-imports: got %v", said)
	}
	r.sound()
}

func TestAnUploadThatIsNotAllOfItsPackagesNewIsRefused(t *testing.T) {
	r := newRig(t)
	r.trustVectors()
	n := rpm.NEVRA{Name: "peer-svc", EVR: rpm.EVR{Version: "1.0", Release: "2"}, Arch: "noarch"}
	r.feeds["19.09"] = map[rpm.Key]rpm.NEVRA{n.Key(): n}
	name, content := vector(t, "0001")
	id := strings.TrimSuffix(name, ".patch")
	_, refusal := r.upload(name, content)
	if want := "Patch validation failed for " + id + ":\nRPM peer-svc-1.0-2.noarch.rpm in patch " + id + " must be higher version than original (1.0-2)\n"; refusal != want {
		t.Errorf("got %q, want %q", refusal, want)
	}
	if n := r.blobs.count(); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
	r.sound()
}

func TestUploadsAreRefusedFirstWhenSpaceIsShort(t *testing.T) {
	for _, tt := range []struct {
		name  string
		short func(*rig)
		want  string
	}{
		{"of the disk", func(r *rig) { r.blobs.setFree(100 << 20) }, "not enough space on the controller's disk: 100 MiB are free and 256 MiB are kept for the controller itself"},
		{"of the state store", func(r *rig) { r.room.set(0.85) }, "the state store is 85% full; what is left is kept for what hosts report"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.trustVectors()
			tt.short(r)
			name, content := vector(t, "0001")
			_, err := r.Upload(context.Background(), "uid 0", name, bytes.NewReader(content))
			if problem.KindOf(err) != problem.Unavailable || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			st, err := r.Status(context.Background())
			if err != nil || !strings.Contains(strings.Join(st.Warnings, "\n"), tt.want) {
				t.Errorf("status does not warn: %v %v", st.Warnings, err)
			}
			a := r.attach("compute-0")
			a.report(current(1)) // hosts are heard all the same
			r.sound()
		})
	}
}

func TestAnUploadThatEndsEarlyLeavesNothing(t *testing.T) {
	r := newRig(t)
	r.trustVectors()
	name, content := vector(t, "0002")
	for _, n := range []int{0, 10, len(content) / 2, len(content) - 1} {
		if _, refusal := r.upload(name, content[:n]); !strings.HasPrefix(refusal, "Patch validation failed for ") {
			t.Errorf("%d bytes of %d: got %q", n, len(content), refusal)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if m, err := r.Upload(ctx, "uid 0", name, bytes.NewReader(content)); err == nil && m.Error == "" {
		t.Error("a cancelled upload was accepted")
	}
	q, err := r.Query(context.Background(), "", "")
	if err != nil || len(q.Patches) != 0 {
		t.Errorf("patches: %v %v", q, err)
	}
	r.sound()
}

func TestApplyAndRemoveWithChecksAreRefusedUntilTheyCanRun(t *testing.T) {
	r := newRig(t)
	r.trustVectors()
	for _, n := range []string{"0005", "0006"} {
		name, content := vector(t, n)
		id := strings.TrimSuffix(name, ".patch")
		if info, refusal := r.upload(name, content); refusal != "" || info != id+" is now available\n" {
			t.Fatalf("%s: %q %q", id, info, refusal)
		}
		m, err := r.Apply(context.Background(), "uid 0", []string{id}, api.ApplyOptions{})
		if want := "cannot apply " + id + ": it carries a semantic check, which this version cannot run yet\n"; err != nil || m.Error != want {
			t.Errorf("got %q %v, want %q", m.Error, err, want)
		}
	}
	r.sound()
}
