package client_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve returns a client of a server that answers as h does.
func serve(t *testing.T, h http.HandlerFunc) *client.Client {
	t.Helper()
	s := httptest.NewServer(h)
	c := client.New(s.URL, s.Client())
	t.Cleanup(func() {
		c.CloseIdle()
		s.Close()
	})
	return c
}

func TestAnAnswerThatIsNoSuccessIsAProblem(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, body string
		status                  int
		kind                    problem.Kind
		msg                     string
	}{
		{"a problem document", "application/problem+json", `{"status":409,"detail":"host a is installing","kind":"conflict"}`, 409, problem.Conflict, "host a is installing"},
		{"an internal error with its request", "application/problem+json", `{"status":500,"detail":"internal error, request 7","kind":""}`, 500, problem.Internal, "internal error, request 7"},
		{"a refusal of the compatible API", "application/json", `{"error": "uid 7 may not do this"}`, 403, problem.Forbidden, "uid 7 may not do this"},
		{"the original's server error", "text/plain", "A server error occurred.", 500, problem.Internal, "HTTP status 500: A server error occurred."},
		{"a page", "text/html", "<html>", 404, problem.NotFound, "HTTP status 404: <html>"},
		{"no JSON though it succeeded", "application/json", "<html>", 200, problem.Unavailable, "cannot read the controller's answer to GET /api/v1/status: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", tt.contentType)
				w.WriteHeader(tt.status)
				if _, err := io.WriteString(w, tt.body); err != nil {
					t.Error(err)
				}
			})
			_, err := c.Status(t.Context())
			if problem.KindOf(err) != tt.kind || err == nil || !strings.HasPrefix(err.Error(), tt.msg) {
				t.Errorf("got %q %v, want %q %s", problem.KindOf(err), err, tt.kind, tt.msg)
			}
			if e, ok := errors.AsType[*client.StatusError](err); tt.status != 200 && (!ok || e.Status != tt.status) {
				t.Errorf("the status is lost: %v", err)
			}
		})
	}
}

// TestAWatchGoesOnWhereItWas cuts the stream of events after each one: every version is seen once, in order.
func TestAWatchGoesOnWhereItWas(t *testing.T) {
	var calls atomic.Int64
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		if n == 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for v := int64(1); v <= n; v++ {
			state := api.OperationRunning
			if v == 4 {
				state = api.OperationDone
			}
			if _, err := fmt.Fprintf(w, ": a comment\nid: %d\nevent: operation\ndata: {\"id\":\"op\",\ndata: \"state\":%q,\"version\":%d}\n\n", v, state, v); err != nil {
				t.Error(err)
			}
		}
	})
	var seen []int64
	o, err := c.WatchOperation(t.Context(), "op", func(o api.Operation) { seen = append(seen, o.Version) })
	if err != nil || o.State != api.OperationDone {
		t.Fatalf("got %+v %v", o, err)
	}
	if diff := cmp.Diff([]int64{1, 2, 3, 4}, seen); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
}

func TestIDsAreEscapedAndAnswersCanBeTraced(t *testing.T) {
	var path, query string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		path, query = r.URL.EscapedPath(), r.URL.RawQuery
		if _, err := io.WriteString(w, `{"info": "", "warning": "", "error": ""}`); err != nil {
			t.Error(err)
		}
	})
	var traced string
	c.Trace = func(b []byte) { traced = string(b) }
	if _, err := c.Remove(t.Context(), []string{"a/b", "c d", "?"}, client.RemoveOptions{SkipAppCheck: true, RemoveUnremovable: true}); err != nil {
		t.Fatal(err)
	}
	if path != "/v1/remove/a%2Fb/c%20d/%3F" || query != "removeunremovable=yes&skipappcheck=yes" {
		t.Errorf("got %s?%s", path, query)
	}
	if traced != `{"info": "", "warning": "", "error": ""}` {
		t.Errorf("traced %q", traced)
	}
}
