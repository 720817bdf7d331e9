package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// scripted is a controller that says what it is told to.
type scripted struct {
	Patching
	Administration
	err      error
	panics   bool
	messages api.Messages
	query    api.Query
	show     api.Show
	hosts    api.QueryHosts
	deps     api.Dependencies
	yes      bool
	op       api.Operation
	calls    []string
}

func (s *scripted) did(format string, args ...any) {
	if s.panics {
		panic("internal error: told to")
	}
	s.calls = append(s.calls, fmt.Sprintf(format, args...))
}

func (s *scripted) Upload(_ context.Context, actor, filename string, body io.Reader) (api.Messages, error) {
	b, err := io.ReadAll(io.LimitReader(body, 100))
	if err != nil {
		return api.Messages{}, err
	}
	s.did("upload %s %s %q", actor, filename, b)
	return s.messages, s.err
}
func (s *scripted) Apply(_ context.Context, _ string, ids []string, o api.ApplyOptions) (api.Messages, error) {
	s.did("apply %q %+v", ids, o)
	return s.messages, s.err
}
func (s *scripted) Remove(_ context.Context, _ string, ids []string, o api.RemoveOptions) (api.Messages, error) {
	s.did("remove %q %+v", ids, o)
	return s.messages, s.err
}
func (s *scripted) Delete(_ context.Context, _ string, ids []string) (api.Messages, error) {
	s.did("delete %q", ids)
	return s.messages, s.err
}
func (s *scripted) Query(_ context.Context, show, release string) (api.Query, error) {
	s.did("query %q %q", show, release)
	return s.query, s.err
}
func (s *scripted) Show(_ context.Context, ids []string) (api.Show, error) {
	s.did("show %q", ids)
	return s.show, s.err
}
func (s *scripted) QueryHosts(context.Context) (api.QueryHosts, error) {
	s.did("query hosts")
	return s.hosts, s.err
}
func (s *scripted) DropHost(_ context.Context, _, host string) (api.Messages, error) {
	s.did("drop %s", host)
	return s.messages, s.err
}
func (s *scripted) WhatRequires(_ context.Context, ids []string) (api.Messages, error) {
	s.did("what requires %q", ids)
	return s.messages, s.err
}
func (s *scripted) QueryDependencies(_ context.Context, ids []string, deep bool) (api.Dependencies, error) {
	s.did("dependencies %q %v", ids, deep)
	return s.deps, s.err
}
func (s *scripted) IsApplied(_ context.Context, ids []string) (bool, error) { return s.yes, s.err }
func (s *scripted) IsAvailable(_ context.Context, ids []string) (bool, error) {
	return s.yes, s.err
}
func (s *scripted) InstallHost(_ context.Context, actor, host string, force bool) (api.Operation, error) {
	s.did("install %s %s %v", actor, host, force)
	return s.op, s.err
}
func (s *scripted) Operation(_ context.Context, id string) (api.Operation, error) {
	return s.op, s.err
}
func (s *scripted) FollowOperation(_ context.Context, id string, each func(api.Operation) error) error {
	if s.err != nil {
		return s.err
	}
	for v, state := range []string{"requested", "running", "done"} {
		s.op.Version, s.op.State = int64(v+1), state
		if err := each(s.op); err != nil {
			return err
		}
	}
	return nil
}
func (s *scripted) Status(context.Context) (api.Status, error) { return api.Status{}, s.err }
func (s *scripted) Tokens(context.Context) ([]api.Token, error) {
	return []api.Token{}, s.err
}

func newServer(s *scripted) *Server {
	return New(Config{Patching: s, Administration: s, Log: slog.New(slog.DiscardHandler), NewID: func() string { return "req-1" }})
}

func as(c Caller) Access { return func(*http.Request) Caller { return c } }

var admin = Caller{Name: "uid 0", Role: Admin}

// ask sends one request to the services of the unix socket.
func ask(s *scripted, c Caller, method, target string, header map[string]string, body io.Reader) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest(method, target, body)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	newServer(s).Handler(as(c), PatchingService, OwnService).ServeHTTP(w, r)
	return w
}

// TestRepliesAreTheOriginals holds every kind of reply to the bytes of spec "Exact replies", with ids of ours.
func TestRepliesAreTheOriginals(t *testing.T) {
	info := api.PatchInfo{RepoState: "Available", PatchState: "Available", Release: "19.09", Status: new("DEV"), Unremovable: new(""), Summary: new("Audit fix"),
		Description: new("First line\nSecond line"), InstallInstructions: new(""), Warnings: new(""), ApplyActiveReleaseOnly: new(""), RebootRequired: "N", Requires: []string{}}
	const one = `{"repostate": "Available", "patchstate": "Available", "sw_version": "19.09", "status": "DEV", "unremovable": "", "summary": "Audit fix", "description": "First line\nSecond line", "install_instructions": "", "warnings": "", "apply_active_release_only": "", "reboot_required": "N", "requires": []}`
	node := "controller"
	h := api.HostInfo{IP: "192.168.204.3", Hostname: "controller-0", PatchCurrent: true, SecsSinceAck: 16, Installed: map[string]string{}, ToRemove: []string{}, MissingPkgs: []string{},
		NodeType: &node, Subfunctions: []string{"controller"}, Release: "19.09", State: "idle", AllowInsvcPatching: true}
	behind := h
	behind.PatchCurrent, behind.Installed, behind.NodeType, behind.Subfunctions = false, map[string]string{"inventory": "2.4-6.tis@x86_64"}, nil, []string{}
	refused := func(kind problem.Kind, text string) error { return problem.Errorf(kind, "%s", text) }
	for _, tt := range []struct {
		name, method, target string
		set                  scripted
		want                 string
	}{
		{"query without patches", "GET", "/v1/query", scripted{query: api.Query{Patches: map[string]api.PatchInfo{}}}, `{"pd": {}}`},
		{"query", "GET", "/v1/", scripted{query: api.Query{Patches: map[string]api.PatchInfo{"DEMO_19.09_PATCH_0001": info}}}, `{"pd": {"DEMO_19.09_PATCH_0001": ` + one + `}}`},
		{"absent elements are left out", "GET", "/patch/query", scripted{query: api.Query{Patches: map[string]api.PatchInfo{"A": {RepoState: "Applied", PatchState: "n/a", Release: "unknown", RebootRequired: "Y", Worker: []string{"w"}, Requires: []string{"B"}}}}},
			`{"pd": {"A": {"repostate": "Applied", "patchstate": "n/a", "sw_version": "unknown", "reboot_required": "Y", "personality-worker": ["w"], "requires": ["B"]}}}`},
		{"show", "POST", "/v1/show/DEMO_19.09_PATCH_0001/NOPE", scripted{show: api.Show{Metadata: map[string]api.PatchInfo{"DEMO_19.09_PATCH_0001": info}, Contents: map[string][]string{"DEMO_19.09_PATCH_0001": {"inventory-2.4-7.tis.x86_64.rpm"}}, Error: "NOPE is unrecognized\n"}},
			`{"metadata": {"DEMO_19.09_PATCH_0001": ` + one + `}, "contents": {"DEMO_19.09_PATCH_0001": ["inventory-2.4-7.tis.x86_64.rpm"]}, "error": "NOPE is unrecognized\n"}`},
		{"hosts", "GET", "/v1/query_hosts", scripted{hosts: api.QueryHosts{Hosts: []api.HostInfo{h}}},
			`{"data": [{"ip": "192.168.204.3", "hostname": "controller-0", "patch_current": true, "secs_since_ack": 16, "patch_failed": false, "stale_details": false, "installed": {}, "to_remove": [], "missing_pkgs": [], "nodetype": "controller", "subfunctions": ["controller"], "sw_version": "19.09", "state": "idle", "requires_reboot": false, "allow_insvc_patching": true, "interim_state": false}]}`},
		{"a host that lags behind, surplus segments", "GET", "/v1/query_hosts/x/", scripted{hosts: api.QueryHosts{Hosts: []api.HostInfo{behind}}},
			`{"data": [{"ip": "192.168.204.3", "hostname": "controller-0", "patch_current": false, "secs_since_ack": 16, "patch_failed": false, "stale_details": false, "installed": {"inventory": "2.4-6.tis@x86_64"}, "to_remove": [], "missing_pkgs": [], "nodetype": null, "subfunctions": [], "sw_version": "19.09", "state": "idle", "requires_reboot": false, "allow_insvc_patching": true, "interim_state": false}]}`},
		{"apply", "POST", "/v1/apply/A/B", scripted{messages: api.Messages{Info: "A is now in the repo\nB is now in the repo\n"}}, `{"info": "A is now in the repo\nB is now in the repo\n", "warning": "", "error": ""}`},
		{"apply while a host installs", "POST", "/v1/apply/A", scripted{err: patch.ErrInstalling}, `{"error": "Rejected: One or more nodes are installing patches."}`},
		{"apply that is refused outright", "POST", "/v1/apply/A", scripted{err: refused(problem.Conflict, "Semantic check failed for A:\nno")}, `{"error": "Error: Semantic check failed for A:\nno"}`},
		{"remove with a warning", "POST", "/v1/remove/A?removeunremovable=yes", scripted{messages: api.Messages{Info: "A has been removed from the repo\n", Warning: "Unremovable patch A being removed\n"}}, `{"info": "A has been removed from the repo\n", "warning": "Unremovable patch A being removed\n", "error": ""}`},
		{"delete", "POST", "/v1/delete/A", scripted{messages: api.Messages{Error: "Patch A not in Available state\n"}}, `{"info": "", "warning": "", "error": "Patch A not in Available state\n"}`},
		{"what requires", "GET", "/v1/what_requires/A", scripted{messages: api.Messages{Info: "A is required by: B\n"}}, `{"info": "A is required by: B\n", "warning": "", "error": ""}`},
		{"dependencies", "GET", "/v1/query_dependencies/B?recursive=yes", scripted{deps: api.Dependencies{Patches: []string{"A", "B"}}}, `{"patches": ["A", "B"], "error": ""}`},
		{"is applied", "POST", "/v1/is_applied/A", scripted{yes: true}, `true`},
		{"is available", "GET", "/v1/is_available/A", scripted{}, `false`},
		{"install", "POST", "/v1/host_install_async/compute-0", scripted{op: api.Operation{Host: "compute-0"}}, `{"info": "Patch installation request sent to compute-0.\n", "warning": "", "error": ""}`},
		{"install on an unknown host", "POST", "/v1/host_install_async/nope", scripted{err: refused(problem.NotFound, "Unknown host specified: nope")}, `{"info": "", "warning": "", "error": "Unknown host specified: nope\n"}`},
		{"install without a host", "POST", "/v1/host_install_async", scripted{}, `{"error": "Host must be specified for install"}`},
		{"drop", "POST", "/v1/drop_host/compute-0", scripted{}, `{"info": "", "warning": "", "error": ""}`},
		{"drop without a host", "POST", "/v1/drop_host/", scripted{}, `{"error": "Host must be specified"}`},
		{"deprecated install", "POST", "/v1/host_install/a/b", scripted{}, `{"error": "Deprecated: Use host_install_async"}`},
		{"upload without a file", "POST", "/v1/upload", scripted{}, `{"error": "Error: No file uploaded"}`},
		{"upload_dir", "POST", "/v1/upload_dir?dir0=/etc", scripted{}, `{"error": "upload_dir is not offered: the controller does not read folders that a client names; upload the files one by one, as sw-patch upload-dir does"}`},
		{"what comes later", "POST", "/v1/commit/A", scripted{}, `{"error": "this version cannot do that yet: /v1/commit/A"}`},
		{"text outside ASCII", "POST", "/v1/apply/A", scripted{messages: api.Messages{Info: "\u00e9 \u65e5 \U0001F600 <&> \x7f\t\"\\"}}, `{"info": "\u00e9 \u65e5 \ud83d\ude00 <&> \u007f\t\"\\", "warning": "", "error": ""}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ask(&tt.set, admin, tt.method, tt.target, nil, nil)
			if diff := cmp.Diff(tt.want, w.Body.String()); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if got := w.Header().Get("Content-Type"); got != "application/json" {
				t.Errorf("content type %q", got)
			}
			if got, want := w.Header().Get("Content-Length"), fmt.Sprint(len(tt.want)); got != want || w.Code != 200 {
				t.Errorf("status %d, length %s; want 200, %s", w.Code, got, want)
			}
		})
	}
}

func TestWhatReachesTheController(t *testing.T) {
	for _, tt := range []struct{ name, method, target, want string }{
		{"ids are segments, escaped slashes split", "POST", "/v1/apply/A%2FB/C.d/?skip-semantic=yes", `apply ["A" "B" "C.d"] {SkipSemantic:true Release:}`},
		{"all available of a release", "POST", "/patch/apply/--all?release=19.09", `apply ["--all"] {SkipSemantic:false Release:19.09}`},
		{"a parameter given twice matches nothing", "POST", "/v1/remove/A?removeunremovable=yes&removeunremovable=yes", `remove ["A"] {RemoveUnremovable:false SkipAppCheck:false SkipSemantic:false}`},
		{"unknown parameters are ignored", "GET", "/v1/query?show=applied&x=y", `query "applied" ""`},
		{"no ids", "POST", "/v1/apply", `apply [] {SkipSemantic:false Release:}`},
		{"force", "POST", "/v1/host_install_async/h/force", `install uid 0 h true`},
		{"the root of the version is query", "GET", "/v1/", `query "" ""`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &scripted{}
			ask(s, admin, tt.method, tt.target, nil, nil)
			if diff := cmp.Diff([]string{tt.want}, s.calls); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("form parameters count as query parameters", func(t *testing.T) {
		s := &scripted{}
		ask(s, admin, "POST", "/v1/apply/A", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, strings.NewReader("skip-semantic=yes"))
		if diff := cmp.Diff([]string{`apply ["A"] {SkipSemantic:true Release:}`}, s.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
	})
}

func TestUploadTakesThePartNamedFile(t *testing.T) {
	form := func(parts ...string) (string, map[string]string) {
		return strings.Join(parts, "") + "--b--\r\n", map[string]string{"Content-Type": "multipart/form-data; boundary=b"}
	}
	part := func(disposition, content string) string {
		return "--b\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" + content + "\r\n"
	}
	for _, tt := range []struct{ name, disposition, want string }{
		{"plain", `name="file"; filename="A.patch"`, `upload uid 0 A.patch "x"`},
		{"a path as typed loses its folders", `name="file"; filename="../../etc/A.patch"`, `upload uid 0 A.patch "x"`},
		{"no file name", `name="file"`, ""},
		{"another part", `name="other"; filename="A.patch"`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &scripted{}
			body, header := form(part(`name="note"`, "hello"), part(tt.disposition, "x"))
			w := ask(s, admin, "POST", "/v1/upload", header, strings.NewReader(body))
			if got := strings.Join(s.calls, "; "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.want == "" && w.Body.String() != `{"error": "Error: No file uploaded"}` {
				t.Errorf("got %s", w.Body)
			}
		})
	}
}

func TestRoutesThatAreNone(t *testing.T) {
	for _, tt := range []struct {
		name, method, target, accept string
		status                       int
		contentType, body            string
	}{
		{"the versions, as a page", "GET", "/", "*/*", 200, "text/html; charset=utf-8", "Titanium Cloud Patching API, Available versions: /v1"},
		{"the versions, as JSON", "GET", "/", "application/json", 200, "application/json", `"Titanium Cloud Patching API, Available versions: /v1"`},
		{"an unknown route, for a browser", "GET", "/v1/nope", "*/*", 404, "text/html; charset=utf-8", ""},
		{"an unknown route, for a program", "GET", "/v1/nope", "application/json", 404, "application/json", `{"code": 404, "title": "Not Found", "description": null}`},
		{"an unknown route, for nobody in particular", "GET", "/nope", "", 404, "text/plain; charset=utf-8", ""},
		{"surplus segments", "GET", "/v1/query/x", "application/json", 404, "application/json", `{"code": 404, "title": "Not Found", "description": null}`},
		{"the version without its slash", "GET", "/v1", "", 302, "text/html; charset=utf-8", ""},
		{"what nobody can read", "GET", "/v1/query", "image/png", 406, "text/plain; charset=utf-8", ""},
		{"a change by GET", "GET", "/v1/apply/A", "", 405, "application/json", `{"error": "GET is not a method of apply; use POST"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			header := map[string]string{}
			if tt.accept != "" {
				header["Accept"] = tt.accept
			}
			w := ask(&scripted{}, admin, tt.method, tt.target, header, nil)
			if w.Code != tt.status || w.Header().Get("Content-Type") != tt.contentType {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Header().Get("Content-Type"), tt.status, tt.contentType)
			}
			if tt.body != "" && w.Body.String() != tt.body {
				t.Errorf("got %s, want %s", w.Body, tt.body)
			}
		})
	}
}

// TestEveryRouteAsksWhoCalls tries every route of the table as everybody who is too small for it.
func TestEveryRouteAsksWhoCalls(t *testing.T) {
	fill := strings.NewReplacer("{host}", "h", "{id}", "i", "{class}", "formal", "{name}", "n", "{path...}", "rel-1/x")
	for _, rt := range routes {
		target := rt.pattern
		if rt.service == PatchingService {
			target = "/v1/" + rt.pattern
		}
		for _, c := range []Caller{{}, {Name: "uid 1000", Role: Local}, {Name: "reader", Role: Reader}, {Name: "operator", Role: Operator}, {Name: "host", Role: Agent}} {
			if admit(c, rt.role) == nil {
				continue
			}
			want := http.StatusForbidden
			if c.Role == Open {
				want = http.StatusUnauthorized
			}
			s := &scripted{panics: true}
			w := httptest.NewRecorder()
			r := httptest.NewRequest(rt.methods[0], fill.Replace(target), nil)
			newServer(s).Handler(as(c), PatchingService, OwnService, RepositoryService).ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s %s as %q: got %d, want %d", rt.methods[0], target, c.Name, w.Code, want)
			}
		}
	}
	if err := admit(Caller{Name: "uid 1000", Role: Local}, Local); err != nil {
		t.Errorf("a local user may not query: %v", err)
	}
}

func TestBugsAreAnsweredAndTheServerLives(t *testing.T) {
	for _, set := range []scripted{{panics: true}, {err: errors.New("the disk is gone")}} {
		w := ask(&set, admin, "GET", "/v1/query", nil, nil)
		if w.Code != 500 || w.Body.String() != "A server error occurred.  Please contact the administrator." {
			t.Errorf("patching: got %d %q", w.Code, w.Body)
		}
		set.calls = nil
		w = ask(&set, admin, "POST", "/api/v1/hosts/h/install", nil, nil)
		if w.Code != 500 || strings.Contains(w.Body.String(), "disk") || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("own: got %d %q", w.Code, w.Body)
		}
	}
}

func TestOwnRefusalsAreProblems(t *testing.T) {
	for _, tt := range []struct {
		name, method, target, body string
		err                        error
		status                     int
		want                       string
	}{
		{"a refusal", "POST", "/api/v1/hosts/h/install", "", problem.Errorf(problem.Conflict, "busy"), 409, `{"type":"about:blank","title":"Conflict","status":409,"detail":"busy","kind":"conflict"}`},
		{"an unknown field", "POST", "/api/v1/hosts/h/install", `{"farce":true}`, nil, 400, `{"type":"about:blank","title":"Bad Request","status":400,"detail":"cannot read the request: json: unknown field \"farce\"","kind":"invalid"}`},
		{"an unknown route", "GET", "/api/v1/nope", "", nil, 404, `{"type":"about:blank","title":"Not Found","status":404,"detail":"no such route: /api/v1/nope","kind":"not-found"}`},
		{"another method", "DELETE", "/api/v1/status", "", nil, 405, `{"type":"about:blank","title":"Method Not Allowed","status":405,"detail":"DELETE is not a method of this route; use GET","kind":"invalid"}`},
		{"a number that is none", "GET", "/api/v1/journal?after=x", "", nil, 400, `{"type":"about:blank","title":"Bad Request","status":400,"detail":"after=\"x\" is not the number of a journal record","kind":"invalid"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := ask(&scripted{err: tt.err}, admin, tt.method, tt.target, nil, strings.NewReader(tt.body))
			if w.Code != tt.status || strings.TrimSpace(w.Body.String()) != tt.want {
				t.Errorf("got %d %s, want %d %s", w.Code, w.Body, tt.status, tt.want)
			}
		})
	}
	t.Run("an operator may not force", func(t *testing.T) {
		w := ask(&scripted{}, Caller{Name: "o", Role: Operator}, "POST", "/api/v1/hosts/h/install", nil, strings.NewReader(`{"force":true}`))
		if w.Code != 403 {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}

func TestAnOperationIsFollowedByEvents(t *testing.T) {
	w := ask(&scripted{op: api.Operation{ID: "op"}}, admin, "GET", "/api/v1/operations/op", map[string]string{"Accept": "text/event-stream"}, nil)
	var ids []string
	for line := range strings.Lines(w.Body.String()) {
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			ids = append(ids, strings.TrimSpace(id))
		}
	}
	if !cmp.Equal(ids, []string{"1", "2", "3"}) || w.Header().Get("Content-Type") != "text/event-stream" || !strings.Contains(w.Body.String(), "event: operation\ndata: {") {
		t.Errorf("got %q", w.Body)
	}
	w = ask(&scripted{err: problem.Errorf(problem.NotFound, "none")}, admin, "GET", "/api/v1/operations/op", map[string]string{"Accept": "text/event-stream"}, nil)
	if w.Code != 404 {
		t.Errorf("an unknown operation: got %d", w.Code)
	}
}

func TestTheSocketKnowsItsCallers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan Caller, 1)
	srv := &http.Server{ConnContext: ConnContext, ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { got <- Peer(r) })}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	resp, err := c.Get("http://controller/")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	want := Caller{Name: fmt.Sprintf("uid %d", os.Getuid()), Role: Local}
	if os.Getuid() == 0 {
		want.Role = Admin
	}
	if c := <-got; c != want {
		t.Errorf("got %+v, want %+v", c, want)
	}
	c.CloseIdleConnections()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	<-served
	if c := Peer(httptest.NewRequest("GET", "/", nil)); c.Role != Open {
		t.Errorf("a connection of which the kernel says nothing: %+v", c)
	}
}

// BenchmarkQueryHosts10000 is the encoding of the largest reply.
func BenchmarkQueryHosts10000(b *testing.B) {
	node := "worker"
	var all api.QueryHosts
	for i := range 10_000 {
		all.Hosts = append(all.Hosts, api.HostInfo{IP: "192.168.204.3", Hostname: fmt.Sprintf("compute-%d", i), PatchCurrent: true, Installed: map[string]string{}, ToRemove: []string{}, MissingPkgs: []string{},
			NodeType: &node, Subfunctions: []string{"worker"}, Release: "19.09", State: "idle", AllowInsvcPatching: true})
	}
	s := &scripted{hosts: all}
	h := newServer(s).Handler(as(admin), PatchingService)
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/v1/query_hosts", nil))
		b.SetBytes(int64(w.Body.Len()))
	}
}
