package patchfile_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/patch/patchfile/patchfiletest"
)

// TestAnyPatchIsReadBackAsItWasBuilt: whatever packages, checks, texts, level and order of inputs, the file that Build makes
// is opened with the same content, also when it arrives in pieces; and no damaged bit
// of it goes unnoticed.
func TestAnyPatchIsReadBackAsItWasBuilt(t *testing.T) {
	keys, signing := trust(t), signingKey(t, "formal-private-key.pem")
	rapid.Check(t, func(t *rapid.T) {
		src := patchfile.Source{
			Metadata: patch.Metadata{
				ID: patch.ID(rapid.StringMatching(`[A-Z0-9_]{1,90}`).Draw(t, "id")), Release: "19.09",
				Summary: patch.Some(rapid.StringMatching(`[ -~\n]{0,40}`).Draw(t, "summary")), Description: patch.Some(""), InstallInstructions: patch.Some(""),
				Warnings: patch.Some(""), Status: patch.Some("DEV"), Unremovable: patch.Some(""), RebootRequired: patch.Some("N"), ApplyActiveReleaseOnly: patch.Some(""),
			},
			Checks: map[patch.Action]patchfile.Input{},
		}
		content := map[string][]byte{}
		want := src.Metadata
		random := rand.NewChaCha8([32]byte{byte(rapid.Byte().Draw(t, "seed"))})
		for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z][a-z0-9+-]{0,80}`), 1, 4, rapid.ID).Draw(t, "names") {
			body := make([]byte, rapid.IntRange(0, 200<<10).Draw(t, "size"))
			if _, err := random.Read(body); err != nil {
				t.Fatal(err)
			}
			spec := rpmmake.Spec{Name: name + "0", EVR: rpm.EVR{Epoch: rapid.IntRange(0, 2).Draw(t, "epoch"), Version: "1", Release: "2"}, Files: []rpmmake.File{{Path: "/f", Body: body}}}
			b, err := spec.Bytes()
			if err != nil {
				t.Fatal(err)
			}
			content[spec.FileName()] = b
			src.Packages = append(src.Packages, patchfile.BytesInput(spec.FileName(), b))
			want.Contents = append(want.Contents, spec.FileName())
			if rapid.Bool().Draw(t, "new") {
				want.Personalities = map[host.Personality][]string{host.Storage: append(want.Personalities[host.Storage], spec.Name)}
			}
		}
		for _, a := range []patch.Action{patch.PreApply, patch.PreRemove} {
			if rapid.Bool().Draw(t, string(a)) {
				src.Checks[a] = patchfile.BytesInput("", []byte("exit 0 # "+a))
				want.Semantics = append(want.Semantics, a)
			}
		}
		slices.Sort(want.Contents)
		slices.Sort(want.Personalities[host.Storage])
		src.Metadata.Personalities = want.Personalities
		o := patchfile.BuildOptions{Level: rapid.IntRange(patchfile.Stored, patchfile.Smallest).Draw(t, "level"), Time: time.Unix(int64(rapid.Uint32().Draw(t, "time")), 0)}
		if rapid.Bool().Draw(t, "side by side") {
			o.Fanout = fanout.New
		}
		var file bytes.Buffer
		if err := patchfile.Build(&file, src, signing, o); err != nil {
			t.Fatal(err)
		}
		opts := patchfile.Options{Stem: string(want.ID), Trust: keys, Fanout: o.Fanout}
		f, err := patchfile.Open(iotest.HalfReader(bytes.NewReader(file.Bytes())), &patchfiletest.Spool{}, opts)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(f.Metadata, want); d != "" {
			t.Fatalf("metadata (-got +want):\n%s", d)
		}
		for _, m := range f.PackageFiles() {
			if b, err := io.ReadAll(m.Reader()); err != nil || !bytes.Equal(b, content[m.Name]) {
				t.Fatalf("%s came back differently: %v", m.Name, err)
			}
		}
		if len(f.Checks()) != len(src.Checks) || f.Signer.Class != patchfile.Formal {
			t.Fatalf("%d checks, signer %+v", len(f.Checks()), f.Signer)
		}

		const gzipHeader = 10 // and the name behind it carry nothing that is checked
		at := rapid.IntRange(gzipHeader+len(want.ID)+len(".patch")+1, file.Len()-1).Draw(t, "damaged byte")
		damaged := bytes.Clone(file.Bytes())
		damaged[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		spool := &patchfiletest.Spool{}
		switch g, err := patchfile.Open(bytes.NewReader(damaged), spool, opts); {
		case err != nil && !spool.Discarded():
			t.Fatalf("the spool was kept after %v", err)
		case err == nil && !cmp.Equal(g.Packages, f.Packages): // deflate has bits that mean nothing
			t.Fatalf("accepted with byte %d damaged, and read differently", at)
		}
	})
}
