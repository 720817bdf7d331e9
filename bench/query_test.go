package bench_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

// answer asks the compatible API over the socket and reads the reply without looking into it, so that what is measured is
// the controller's part.
func (c *controller) answer(hc *http.Client, route string) (size int64) {
	c.b.Helper()
	resp, err := hc.Get("http://controller" + route)
	if err != nil {
		c.b.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
		c.b.Fatal(resp.Status, err)
	}
	return n
}

// queries measures a route, and beside it the same by our client, which understands the reply.
func (c *controller) queries(route string, ask func(context.Context) error) {
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.socket())
	}}}
	defer hc.CloseIdleConnections()
	var answered, understood times
	var size int64
	for c.b.Loop() {
		began := time.Now()
		size = c.answer(hc, route)
		answered = append(answered, time.Since(began))
		c.b.StopTimer()
		began = time.Now()
		if err := ask(c.b.Context()); err != nil {
			c.b.Fatal(err)
		}
		understood = append(understood, time.Since(began))
		c.b.StartTimer()
	}
	answered.report(c.b)
	c.b.ReportMetric(understood.at(0.50), "ms-client-p50")
	c.b.ReportMetric(float64(size)/1000, "KB")
}

// BenchmarkQuery500Patches is a whole request over the socket, from the controller's evaluation to the last byte.
func BenchmarkQuery500Patches(b *testing.B) {
	n := size(500, 10)
	c := newController(b)
	c.smallPatches(n)
	c.queries("/v1/query", func(ctx context.Context) error {
		q, err := c.client.Query(ctx, "all", "")
		if err == nil && len(q.Patches) != n {
			err = fmt.Errorf("%d patches", len(q.Patches))
		}
		return err
	})
}
