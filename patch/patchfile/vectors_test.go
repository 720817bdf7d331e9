package patchfile_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/patch/patchfile/patchfiletest"
)

const vectors = "testdata/vectors"

func key(t testing.TB, name string) patchfile.Key {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, "keys", name))
	if err != nil {
		t.Fatal(err)
	}
	k, err := patchfile.ParseKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func trust(t testing.TB) patchfile.Trust {
	t.Helper()
	return patchfile.Trust{Formal: []patchfile.Key{key(t, "formal-cert.pem")}, Dev: []patchfile.Key{key(t, "dev-public-key.pem")}}
}

// vector is what the original's verifier read in a patch.
type vector struct {
	ID              string                                           `json:"id"`
	Contents        []string                                         `json:"contents"`
	ContentVersions map[string]string                                `json:"content_versions"`
	Extracted       map[string]string                                `json:"extracted"`
	Groups          map[string]map[string]map[string]map[string]bool `json:"groups"`
	Metadata        map[string]any                                   `json:"metadata"`
	MetadataXML     string                                           `json:"metadata_xml"`
	QueryPatch      map[string]string                                `json:"query_patch"`
	Semantics       []string                                         `json:"semantics"`
	Signature       string                                           `json:"signature"`
	SignatureV2     int                                              `json:"signature_v2_bytes"`
}

func readVector(t testing.TB, id string) (v vector) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectors, "expected", id+".json"))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func vectorIDs(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(vectors, "patches", "*.patch"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".patch")
	}
	return files
}

func shortSum(t *testing.T, m patchfile.Member) string {
	t.Helper()
	b, err := io.ReadAll(m.Reader())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	if got := hex.EncodeToString(sum[:]); got != m.SHA256 || int64(len(b)) != m.Size {
		t.Errorf("%s: spooled %d bytes with digest %s; the member says %d and %s", m.Name, len(b), got, m.Size, m.SHA256)
	}
	return m.SHA256[:16]
}

func TestReadsThePatchesOfTheOriginal(t *testing.T) {
	for _, id := range vectorIDs(t) {
		t.Run(id, func(t *testing.T) {
			want := readVector(t, id)
			b, err := os.ReadFile(filepath.Join(vectors, "patches", id+".patch"))
			if err != nil {
				t.Fatal(err)
			}
			f, err := patchfile.Open(bytes.NewReader(b), &patchfiletest.Spool{}, patchfile.Options{Stem: id, Trust: trust(t), KeepTars: true})
			if err != nil {
				t.Fatal(err)
			}
			if got := string(f.Metadata.ID); got != want.ID {
				t.Errorf("id %s, want %s", got, want.ID)
			}
			if d := cmp.Diff(f.Metadata.Contents, want.Contents); d != "" {
				t.Errorf("contents (-got +want):\n%s", d)
			}
			if got := string(f.XML); got != want.MetadataXML {
				t.Errorf("metadata.xml (-got +want):\n%s", cmp.Diff(got, want.MetadataXML))
			}
			var again bytes.Buffer
			if err := patch.WriteMetadata(&again, f.Metadata); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(again.String(), want.MetadataXML); d != "" {
				t.Errorf("metadata.xml as we write it (-got +want):\n%s", d)
			}
			versions := map[string]string{}
			for _, p := range f.Packages {
				versions[p.NEVRA.Name] = p.NEVRA.VersionRelease()
			}
			if d := cmp.Diff(versions, want.ContentVersions); d != "" {
				t.Errorf("versions (-got +want):\n%s", d)
			}
			if d := cmp.Diff(fields(f.Metadata), stateless(want.Metadata)); d != "" {
				t.Errorf("metadata (-got +want):\n%s", d)
			}
			if d := cmp.Diff(groups(f.Metadata), want.Groups); d != "" {
				t.Errorf("groups (-got +want):\n%s", d)
			}
			var semantics = []string{}
			for a := range f.Checks() {
				semantics = append(semantics, string(a))
			}
			slices.Sort(semantics)
			if d := cmp.Diff(semantics, want.Semantics); d != "" {
				t.Errorf("semantics (-got +want):\n%s", d)
			}
			if got := want.QueryPatch["cert"]; f.Signer.Class != got || f.Signer.Key != key(t, got+"-cert.pem").ID() {
				t.Errorf("signed by %+v, want the %s key", f.Signer, got)
			}

			extracted := map[string]string{}
			for _, m := range f.PackageFiles() {
				extracted[m.Name] = shortSum(t, m)
			}
			for a, m := range f.Checks() {
				extracted[string(a)+"/"+id] = shortSum(t, m)
			}
			outer := untar(t, gunzip(t, b))
			for name, body := range outer {
				sum := sha256.Sum256(body)
				extracted[name] = hex.EncodeToString(sum[:])[:16]
			}
			xmlSum := sha256.Sum256(f.XML)
			extracted["metadata.xml"] = hex.EncodeToString(xmlSum[:])[:16]
			if d := cmp.Diff(extracted, want.Extracted); d != "" {
				t.Errorf("digests (-got +want):\n%s", d)
			}
			if got := string(outer["signature"]); got != want.Signature {
				t.Errorf("signature %s, want %s", got, want.Signature)
			}
			if got := len(outer["signature.v2"]); got != want.SignatureV2 {
				t.Errorf("signature.v2 has %d bytes, want %d", got, want.SignatureV2)
			}
		})
	}
}

// fields is the metadata in the shape of the vectors: present texts, always a reboot_required of Y or N, and the lists.
func fields(m patch.Metadata) map[string]any {
	out := map[string]any{"sw_version": m.Release}
	for name, text := range map[string]patch.Text{
		"summary": m.Summary, "description": m.Description, "install_instructions": m.InstallInstructions, "warnings": m.Warnings,
		"status": m.Status, "unremovable": m.Unremovable, "apply_active_release_only": m.ApplyActiveReleaseOnly,
	} {
		if text.Present {
			out[name] = text.Value
		}
	}
	out["reboot_required"] = "Y"
	if m.InService() {
		out["reboot_required"] = "N"
	}
	requires := []any{}
	for _, id := range m.Requires {
		requires = append(requires, string(id))
	}
	out["requires"] = requires
	for hp, names := range m.Personalities {
		list := []any{}
		for _, n := range names {
			list = append(list, n)
		}
		out["personality-"+string(hp)] = list
	}
	return out
}

// stateless drops what a controller adds.
func stateless(m map[string]any) map[string]any {
	delete(m, "repostate")
	delete(m, "patchstate")
	return m
}

func groups(m patch.Metadata) map[string]map[string]map[string]map[string]bool {
	out := map[string]map[string]map[string]map[string]bool{}
	for hp, names := range m.Personalities {
		if out[m.Release] == nil {
			out[m.Release] = map[string]map[string]map[string]bool{}
		}
		packages := map[string]bool{}
		for _, n := range names {
			packages[n] = true
		}
		out[m.Release][string(hp)] = map[string]map[string]bool{string(m.ID): packages}
	}
	return out
}

func TestRefusesTheBadVectors(t *testing.T) {
	why := map[string]struct {
		sentinel error
		text     string
	}{
		"bad-md5":           {patchfile.ErrVerification, "Patch failed verification: signature is"},
		"tampered-software": {patchfile.ErrVerification, "Patch failed verification: signature is"},
		"unsigned":          {patchfile.ErrUnsigned, "Patch has not been signed: there is no signature.v2"},
		"unknown-key":       {patchfile.ErrSignature, "Signature check failed: no trusted key made its signature"},
		"truncated":         {patchfile.ErrExtraction, "Failed during patch extraction: the file is cut off after 1297 bytes"},
		"no-software":       {patchfile.ErrExtraction, "Failed during patch extraction: there is no software.tar in it"},
		"xml-malformed":     {patchfile.ErrExtraction, "Failed during patch extraction: metadata.xml: it is not well-formed XML"},
		"wrong-filename":    {nil, "the file is called wrong-filename.patch and holds patch PEER_19.09_PATCH_0001; rename it"},
	}
	files, err := filepath.Glob(filepath.Join(vectors, "bad", "*.patch"))
	if err != nil || len(files) != len(why) {
		t.Fatalf("%d bad vectors and %d expectations: %v", len(files), len(why), err)
	}
	for _, file := range files {
		stem := strings.TrimSuffix(filepath.Base(file), ".patch")
		t.Run(stem, func(t *testing.T) {
			want := why[stem]
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			o := patchfile.Options{Trust: trust(t)}
			if stem == "wrong-filename" {
				o.Stem = stem
			}
			spool := &patchfiletest.Spool{}
			_, err = patchfile.Open(bytes.NewReader(b), spool, o)
			if err == nil || !strings.HasPrefix(err.Error(), want.text) || want.sentinel != nil && !errors.Is(err, want.sentinel) {
				t.Errorf("refused with %v; want %q", err, want.text)
			}
			if !spool.Discarded() || len(spool.Names()) > 0 {
				t.Errorf("left in the spool: %q", spool.Names())
			}
		})
	}
}
