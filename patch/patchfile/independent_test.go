package patchfile_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/starpatch/starpatch/patch/patchfile"
)

// What follows says the format again, without the package under test and in the plainest way: the standard library's gzip
// and tar, the checksum as one large number, the signatures over bytes in memory.

func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func untar(t testing.TB, b []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

// entry is one member of a tar to be made; the zero Typeflag is a regular file.
type entry struct {
	tar.Header
	body []byte
}

func regular(name string, body []byte) entry { return entry{tar.Header{Name: name}, body} }

func tarred(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if e.Typeflag != tar.TypeXGlobalHeader {
			e.Mode = 0o644
		}
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.body))
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checksumText is the signature member of these signed members.
func checksumText(signed ...[]byte) string {
	n := new(big.Int).Lsh(big.NewInt(1), 128)
	n.Sub(n, big.NewInt(1))
	for _, b := range signed {
		sum := md5.Sum(b)
		n.Xor(n, new(big.Int).SetBytes(sum[:]))
	}
	return n.Text(16)
}

// sign is the signature.v2 member of these signed members.
func sign(t testing.TB, key *rsa.PrivateKey, signed ...[]byte) []byte {
	t.Helper()
	sum := sha256.Sum256(bytes.Join(signed, nil))
	sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, sum[:], &rsa.PSSOptions{SaltLength: 32})
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestWhatIsBuiltVerifiesElsewhere(t *testing.T) {
	for _, name := range []string{"dev", "formal"} {
		var b bytes.Buffer
		key := signingKey(t, name+"-private-key.pem")
		if err := patchfile.Build(&b, demo(t), key, patchfile.BuildOptions{}); err != nil {
			t.Fatal(err)
		}
		m := untar(t, gunzip(t, b.Bytes()))
		signed := [][]byte{m["metadata.tar"], m["software.tar"], m["semantics.tar"]}
		if got, want := string(m["signature"]), checksumText(signed...); got != want {
			t.Errorf("signature %s, want %s", got, want)
		}
		sum := sha256.Sum256(bytes.Join(signed, nil))
		if err := rsa.VerifyPSS(&key.PublicKey, crypto.SHA256, sum[:], m["signature.v2"], &rsa.PSSOptions{SaltLength: 32}); err != nil {
			t.Errorf("signature.v2: %v", err)
		}
		dir := t.TempDir()
		for file, body := range map[string][]byte{"signed": bytes.Join(signed, nil), "signature.v2": m["signature.v2"]} {
			if err := os.WriteFile(filepath.Join(dir, file), body, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out, err := exec.Command("openssl", "dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32",
			"-verify", filepath.Join(vectors, "keys", name+"-public-key.pem"), "-signature", filepath.Join(dir, "signature.v2"), filepath.Join(dir, "signed")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Verified OK") {
			t.Errorf("openssl: %v: %s", err, out)
		}
		// The order, the dialect and the padding that the original's readers and writers use.
		raw := gunzip(t, b.Bytes())
		if len(raw)%10240 != 0 || len(m["software.tar"])%10240 != 0 || string(raw[257:265]) != "ustar  \x00" {
			t.Errorf("not a GNU tar of whole records: %d and %d bytes, magic %q", len(raw), len(m["software.tar"]), raw[257:265])
		}
		var order []string
		for r := tar.NewReader(bytes.NewReader(raw)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			order = append(order, h.Name)
		}
		if got := strings.Join(order, " "); got != "metadata.tar software.tar semantics.tar signature signature.v2" {
			t.Errorf("members: %s", got)
		}
	}
}
