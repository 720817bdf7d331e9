package blob

import (
	"fmt"
	"testing"

	"github.com/starpatch/starpatch/internal/durable/durabletest"
)

func TestBlobsSurviveAPowerCut(t *testing.T) {
	d := durabletest.NewDisk(t)
	s := open(t, d.Dir)
	var digests []string
	for i := range 3 {
		var contents []string
		for n := range 20 {
			contents = append(contents, fmt.Sprintf("package %d of upload %d", n, i))
		}
		sp, members := upload(t, s, contents...)
		if err := s.Keep(sp, members); err != nil {
			t.Fatal(err)
		}
		for _, m := range members {
			digests = append(digests, m.SHA256)
		}
	}
	small, err := s.Put([]byte("metadata"))
	if err != nil {
		t.Fatal(err)
	}
	upload(t, s, "never kept")
	d.Cut(t)
	d.Restore(t)
	s = open(t, d.Dir)
	for _, digest := range append(digests, small) {
		if got := hashOf(read(t, s, digest)); got != digest {
			t.Errorf("the content of %s has the hash %s", digest, got)
		}
	}
}
