package controller

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"sync"
	"testing"

	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
)

func hexSum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// onceKeys makes one key for all tests: making RSA keys is slow.
var onceKeys = sync.OnceValues(func() (patchfile.Trust, error) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return patchfile.Trust{}, err
	}
	pub, err := patchfile.NewKey(k.Public())
	return patchfile.Trust{Formal: []patchfile.Key{pub}}, err
})

func testKeys(t testing.TB) patchfile.Trust {
	t.Helper()
	keys, err := onceKeys()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// signed says that the patch was signed by the key that the rig trusts.
func (r *rig) signed(p patch.Patch) patch.Patch {
	p.Signer = r.signer
	return p
}

// sweepNow removes what nobody needs, as the cleaner does.
func (r *rig) sweepNow() {
	r.t.Helper()
	r.lane <- struct{}{}
	defer func() { <-r.lane }()
	if err := r.repo.Sweep(r.needed()); err != nil {
		r.t.Fatal(err)
	}
}

func peer(name string) agentlink.Peer {
	return agentlink.Peer{Host: name, IP: netip.MustParseAddr("127.0.0.2")}
}

func helloAt(epoch uint64) agentlink.Hello { return agentlink.Hello{Facts: facts(), Epoch: epoch} }

func progressOf(op, state string) agentlink.Progress {
	return agentlink.Progress{Operation: op, State: state}
}

// sweepBlobs removes what no record names, as the cleaner does.
func (r *rig) sweepBlobs() {
	r.t.Helper()
	r.lane <- struct{}{}
	defer func() { <-r.lane }()
	if err := r.blobs.Sweep(r.snap.Load().named()); err != nil {
		r.t.Fatal(err)
	}
}

func (b *memBlobs) has(d string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.have[d]
}

func (b *memBlobs) setFree(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free = n
}
