package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
)

// smallPatches uploads n patches of one package of a hundred bytes each, and applies every second one.
func (c *controller) smallPatches(n int) {
	c.b.Helper()
	text, err := os.ReadFile(keys + "dev-private-key.pem")
	if err != nil {
		c.b.Fatal(err)
	}
	key, err := patchfile.ParseSigningKey(text)
	if err != nil {
		c.b.Fatal(err)
	}
	var applied []string
	for i := range n {
		spec := rpmmake.Spec{Name: fmt.Sprintf("small-%03d", i), EVR: rpmmake.EVR("1.0-2"), Files: []rpmmake.File{{Path: fmt.Sprintf("/opt/small/%d", i), Body: bytes.Repeat([]byte{'x'}, 100)}}}
		rpm, err := spec.Bytes()
		if err != nil {
			c.b.Fatal(err)
		}
		id := fmt.Sprintf("SMALL_19.09_PATCH_%04d", i)
		src := patchfile.Source{Packages: []patchfile.Input{patchfile.BytesInput(spec.FileName(), rpm)},
			Metadata: patch.Metadata{ID: patch.ID(id), Release: release, Status: patch.Some("REL"), Summary: patch.Some("One small package"), RebootRequired: patch.Some("N")}}
		var file bytes.Buffer
		if err := patchfile.Build(&file, src, key, patchfile.BuildOptions{}); err != nil {
			c.b.Fatal(err)
		}
		m, err := c.client.Upload(context.Background(), id+patchfile.Extension, &file, nil)
		if err != nil || m.Error != "" {
			c.b.Fatal(err, m.Error)
		}
		if i%2 == 0 {
			applied = append(applied, id)
		}
	}
	m, err := c.client.Apply(context.Background(), applied, client.ApplyOptions{})
	if err != nil || m.Error != "" {
		c.b.Fatal(err, m.Error)
	}
}

// BenchmarkQuery500Patches is what sw-patch query waits for: a whole request over the socket and its JSON, read.
func BenchmarkQuery500Patches(b *testing.B) {
	n := size(500, 10)
	c := newController(b)
	c.smallPatches(n)
	var took times
	for b.Loop() {
		began := time.Now()
		q, err := c.client.Query(b.Context(), "all", "")
		took = append(took, time.Since(began))
		if err != nil || len(q.Patches) != n {
			b.Fatal(len(q.Patches), err)
		}
	}
	took.report(b)
}
