package repo

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
)

// drawSet draws up to five patches of one release, Available or Applied.
func drawSet(t *rapid.T) patch.Set {
	set := patch.Set{}
	ids := []patch.ID{"A", "B", "C", "D", "E"}
	for i, id := range ids[:rapid.IntRange(1, 5).Draw(t, "patches")] {
		p := patch.Patch{Metadata: patch.Metadata{ID: id, Release: "19.09", Personalities: map[host.Personality][]string{}}}
		p.RepoState = rapid.SampledFrom([]patch.RepoState{patch.RepoAvailable, patch.RepoApplied}).Draw(t, "state")
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"x", "y", "z"}), 1, 3, rapid.ID).Draw(t, "packages") {
			n := rpm.NEVRA{Name: name, EVR: rpm.EVR{Version: "1", Release: fmt.Sprint(i + 1)}, Arch: "noarch"}
			p.Packages = append(p.Packages, patch.Package{File: n.FileName(), NEVRA: n, SHA256: strings.Repeat("0", 63) + fmt.Sprint(i)})
			if rapid.Bool().Draw(t, "new") {
				hp := rapid.SampledFrom(host.Personalities()).Draw(t, "personality")
				p.Personalities[hp] = append(p.Personalities[hp], name)
			}
		}
		set[id] = p
	}
	return set
}

func TestApplyThenRemoveRestoresTheRepository(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawSet(t)
		before := GenerationOf("19.09", 1, set.Sorted(), nil)
		now := patch.Situation{Release: "19.09", Trusts: func(patch.Signer) bool { return true }}
		var ids []string
		for id, p := range set {
			if p.RepoState == patch.RepoAvailable {
				ids = append(ids, string(id))
			}
		}
		d, err := patch.DecideApply(set, patch.ApplyRequest{IDs: ids}, now)
		if err != nil || d.Refused() {
			t.Fatal(d, err)
		}
		set = d.After(set, func(string) int64 { return 2 })
		applied := GenerationOf("19.09", 2, set.Sorted(), before.Brought)
		for _, p := range set {
			for _, pkg := range p.Packages {
				if !slices.Contains(applied.Brought, pkg.NEVRA) {
					t.Errorf("%s was applied, but %s is not among what was brought", p.ID, pkg.NEVRA)
				}
			}
		}
		d, err = patch.DecideRemove(set, patch.RemoveRequest{IDs: ids}, now)
		if err != nil || d.Refused() {
			t.Fatal(d, err)
		}
		set = d.After(set, func(string) int64 { return 3 })
		after := GenerationOf("19.09", 3, set.Sorted(), applied.Brought)
		if diff := cmp.Diff(after, before, cmpopts.IgnoreFields(Generation{}, "Revision", "Brought")); diff != "" {
			t.Errorf("after the remove (-got +want): %s", diff)
		}
		if diff := cmp.Diff(string(after.comps()), string(before.comps())); diff != "" {
			t.Errorf("groups: %s", diff)
		}
		if diff := cmp.Diff(string(after.updateInfo()), string(before.updateInfo())); diff != "" {
			t.Errorf("advisories: %s", diff)
		}
		if diff := cmp.Diff(after.Brought, applied.Brought); diff != "" {
			t.Errorf("what was brought is forgotten: %s", diff)
		}
	})
}

func TestGenerationIgnoresWhatIsNotApplied(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := drawSet(t)
		all := set.Sorted()
		var applied []patch.Patch
		for _, p := range all {
			if p.RepoState != patch.RepoAvailable {
				applied = append(applied, p)
			}
		}
		slices.Reverse(applied)
		for i := range applied {
			applied[i].Status, applied[i].Summary = patch.Some("OBS"), patch.Some("other text")
		}
		if d := cmp.Diff(GenerationOf("19.09", 1, all, nil), GenerationOf("19.09", 1, applied, nil)); d != "" {
			t.Fatalf("Available patches, texts, status or order matter: %s", d)
		}
	})
}

func TestTextsOfTheRepository(t *testing.T) {
	p := applied("P1", "Y", patch.Package{NEVRA: rpm.NEVRA{Name: "lib++", EVR: rpm.EVR{Epoch: 2, Version: "1.0", Release: "1"}, Arch: "x86_64"}, SHA256: "ab", Built: 1567296000})
	p.Personalities = map[host.Personality][]string{host.Worker: {"lib++", "a<b"}, host.Storage: {}}
	g := GenerationOf("19.09", 4, []patch.Patch{p}, nil)
	const comps = `<?xml version="1.0" encoding="UTF-8"?>
<comps>
  <group>
    <id>updates-worker</id>
    <default>false</default>
    <uservisible>true</uservisible>
    <display_order>1024</display_order>
    <name>updates-worker</name>
    <description>Patches for worker</description>
    <packagelist>
      <packagereq type="mandatory">a&lt;b</packagereq>
      <packagereq type="mandatory">lib++</packagereq>
    </packagelist>
  </group>
</comps>
`
	if d := cmp.Diff(string(g.comps()), comps); d != "" {
		t.Errorf("comps.xml (-got +want): %s", d)
	}
	const info = `<?xml version="1.0" encoding="UTF-8"?>
<updates>
  <update from="starpatch" status="final" type="bugfix" version="1">
    <id>P1</id>
    <title>P1</title>
    <issued date="2019-09-01 00:00:00"/>
    <updated date="2019-09-01 00:00:00"/>
    <release>19.09</release>
    <description>Patch P1 for release 19.09</description>
    <references/>
    <pkglist>
      <collection short="19.09">
        <name>19.09</name>
        <package name="lib++" version="1.0" release="1" epoch="2" arch="x86_64">
          <filename>lib++-1.0-1.x86_64.rpm</filename>
          <sum type="sha256">ab</sum>
          <reboot_suggested>True</reboot_suggested>
        </package>
      </collection>
    </pkglist>
  </update>
</updates>
`
	if d := cmp.Diff(string(g.updateInfo()), info); d != "" {
		t.Errorf("updateinfo.xml (-got +want): %s", d)
	}
}

func BenchmarkBuild500Packages(b *testing.B) {
	blobs := folderBlobs{b.TempDir()}
	var patches []patch.Patch
	for i := range 100 {
		var pkgs []patch.Package
		for j := range 5 {
			pkgs = append(pkgs, blobs.put(b, fmt.Sprintf("pkg-%d-%d", i, j), "1.0-1", "noarch"))
		}
		patches = append(patches, applied(patch.ID(fmt.Sprintf("P%03d", i)), "N", pkgs...))
	}
	builder := NewBuilder(b.TempDir(), blobs)
	revision := int64(0)
	for b.Loop() {
		revision++
		if _, err := builder.Build(b.Context(), GenerationOf("19.09", revision, patches, nil)); err != nil {
			b.Fatal(err)
		}
	}
}
