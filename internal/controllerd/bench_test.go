package controllerd_test

import (
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/starpatch/starpatch/client"
)

// BenchmarkQueryHosts is the whole way of a query over the socket, with one host.
func BenchmarkQueryHosts(b *testing.B) {
	s := newSite(b)
	s.join("compute-0", worker())
	for b.Loop() {
		if _, err := s.client.QueryHosts(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkApplyAndRemove is the whole way of both: decision, generation with createrepo_c, commit.
func BenchmarkApplyAndRemove(b *testing.B) {
	s := newSite(b)
	s.must("0001")
	ids := []string{"PEER_19.09_PATCH_0001"}
	for b.Loop() {
		if m, err := s.client.Apply(b.Context(), ids, client.ApplyOptions{}); err != nil || m.Error != "" {
			b.Fatal(err, m.Error)
		}
		if m, err := s.client.Remove(b.Context(), ids, client.RemoveOptions{}); err != nil || m.Error != "" {
			b.Fatal(err, m.Error)
		}
	}
}

// BenchmarkStart is a controller's start until it is ready, with data, and its stop.
func BenchmarkStart(b *testing.B) {
	s := newSite(b)
	s.must("0001")
	s.client.CloseIdle()
	s.halt()
	for b.Loop() {
		s.start()
		b.StopTimer()
		s.halt()
		b.StartTimer()
	}
}

// BenchmarkCompat is the compatible port as a client of the original uses it.
func BenchmarkCompat(b *testing.B) {
	s := newSite(b, "compat-loopback: true")
	s.must("0001", "0002", "0003")
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	for b.Loop() {
		resp, err := c.Get("http://" + net.JoinHostPort(s.address, "5487") + "/v1/query")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			b.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
