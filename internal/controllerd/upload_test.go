package controllerd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/client"
)

// TestEveryVectorIsAcceptedOrRefusedAsItShouldBe uploads the original's patches.
func TestEveryVectorIsAcceptedOrRefusedAsItShouldBe(t *testing.T) {
	s := newSite(t)
	for _, n := range []string{"0001", "0002", "0003", "0004", "0005", "0006", "0007"} {
		id := "PEER_19.09_PATCH_" + n
		if info, refusal := s.uploadFile(filepath.Join(vectors, "patches", id+".patch")); info != id+" is now available\n" || refusal != "" {
			t.Errorf("%s: got %q %q", id, info, refusal)
		}
	}
	before := s.tree("blobs")
	for _, tt := range []struct{ name, file, want string }{
		{"another release", "PEER_19.09_PATCH_0008", "Patch validation failed for PEER_19.09_PATCH_0008:\nPatch PEER_19.09_PATCH_0008 software release (20.01) is not installed\n"},
		{"a package that another patch brings", "PEER_19.09_PATCH_0021", "Patch validation failed for PEER_19.09_PATCH_0021:\nPatch PEER_19.09_PATCH_0021 contains rpm peer-svc-1.0-2.noarch.rpm, which is already provided by patch PEER_19.09_PATCH_0001\n"},
	} {
		t.Run(tt.name+" is refused", func(t *testing.T) {
			if info, refusal := s.uploadFile(filepath.Join(vectors, "patches", tt.file+".patch")); refusal != tt.want || info != "" {
				t.Errorf("got %q %q, want %q", info, refusal, tt.want)
			}
		})
	}
	t.Run("a second upload updates metadata only", func(t *testing.T) {
		info, refusal := s.uploadFile(filepath.Join(vectors, "patches", "PEER_19.09_PATCH_0001.patch"))
		if want := "PEER_19.09_PATCH_0001 is already imported. Updated metadata only\n"; info != want || refusal != "" {
			t.Errorf("got %q %q, want %q", info, refusal, want)
		}
	})
	if diff := cmp.Diff(before, s.tree("blobs")); diff != "" {
		t.Errorf("refusals and re-imports left something (-before +after):\n%s", diff)
	}
	for _, id := range []string{"PEER_19.09_PATCH_0005", "PEER_19.09_PATCH_0006"} {
		m, err := s.client.Apply(t.Context(), []string{id}, client.ApplyOptions{})
		if want := "cannot apply " + id + ": it carries a semantic check, which this version cannot run yet\n"; err != nil || m.Error != want {
			t.Errorf("apply %s: got %q %v, want %q", id, m.Error, err, want)
		}
	}
}

// TestEveryBadPatchIsRefusedAndLeavesNothing uploads what nobody may accept, and looks at store, blobs and spools.
func TestEveryBadPatchIsRefusedAndLeavesNothing(t *testing.T) {
	s := newSite(t)
	before := s.tree("blobs")
	for file, want := range map[string]string{
		"bad-md5":           "Patch failed verification",
		"tampered-software": "Patch failed verification",
		"unsigned":          "Patch has not been signed\n",
		"unknown-key":       "Signature check failed",
		"truncated":         "Failed during patch extraction",
		"no-software":       "Failed during patch extraction",
		"xml-malformed":     "Failed during patch extraction",
		"wrong-filename":    "the file is named wrong-filename.patch, but its metadata name PEER_19.09_PATCH_0001",
	} {
		t.Run(file, func(t *testing.T) {
			info, refusal := s.uploadFile(filepath.Join(vectors, "bad", file+".patch"))
			if info != "" || !strings.HasPrefix(refusal, "Patch validation failed for "+file+":\n"+want) {
				t.Errorf("got %q %q, want a refusal with %q", info, refusal, want)
			}
		})
	}
	good, err := os.ReadFile(filepath.Join(vectors, "patches", "PEER_19.09_PATCH_0001.patch"))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"PEER_19.09_PATCH_0001.zip":          "File must end in .patch extension: PEER_19.09_PATCH_0001.zip\n",
		"PEER_19.09_PATCH_0001.patch.gz":     "File must end in .patch extension: PEER_19.09_PATCH_0001.patch.gz\n",
		"PEER_19.09_PATCH_0001":              "File must end in .patch extension: PEER_19.09_PATCH_0001\n",
		".patch":                             "File must end in .patch extension: .patch\n",
		"-rf.patch":                          "Patch validation failed for -rf:\nthe file is named -rf.patch",
		"a b;c$(d).patch":                    "Patch validation failed for a b;c$(d):\nthe file is named",
		"x\x00y.patch":                       "",
		strings.Repeat("x", 4096) + ".patch": "Patch validation failed for xxx",
	} {
		t.Run("the file name "+name[:min(len(name), 30)], func(t *testing.T) {
			info, refusal := s.upload(name, good)
			if info != "" || refusal == "" || !strings.HasPrefix(refusal, want) {
				t.Errorf("got %q %q, want a refusal with %q", info, refusal, want)
			}
		})
	}
	t.Run("no patch file at all", func(t *testing.T) {
		if _, refusal := s.upload("x.patch", bytes.Repeat([]byte("x"), 1<<20)); !strings.HasPrefix(refusal, "Patch validation failed for x:\nFailed during patch extraction") {
			t.Errorf("got %q", refusal)
		}
		if _, refusal := s.upload("x.patch", nil); !strings.HasPrefix(refusal, "Patch validation failed for x:\nFailed during patch extraction") {
			t.Errorf("empty: got %q", refusal)
		}
	})
	q, err := s.client.Query(t.Context(), "", "")
	if err != nil || len(q.Patches) != 0 {
		t.Errorf("patches after refusals: %v %v", q.Patches, err)
	}
	if diff := cmp.Diff(before, s.tree("blobs")); diff != "" {
		t.Errorf("refusals left something (-before +after):\n%s", diff)
	}
}
