package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// The texts that upstream answers with outside of JSON.
const (
	versionText     = "Titanium Cloud Patching API, Available versions: /v1"
	serverErrorText = "A server error occurred.  Please contact the administrator."
)

// maxForm is the largest body of a request that is not an upload, in bytes.
const maxForm = 1 << 20

// call is one request as a handler sees it.
type call struct {
	w      http.ResponseWriter
	r      *http.Request
	args   []string   // segments after the route (patching)
	params url.Values // query and form together (patching)
	caller Caller
}

// is says that a parameter was given once, with this value: a repeated one matches nothing, as upstream.
func (c *call) is(name, value string) bool {
	v := c.params[name]
	return len(v) == 1 && v[0] == value
}

// one returns a parameter that was given once, else nothing.
func (c *call) one(name string) string {
	if v := c.params[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// reply is what a handler returns: a value to encode, or nil when it wrote the answer itself.
type reply struct {
	status int // 0: 200
	value  any
}

// said is a reply that is a value.
func said(v any, err error) (reply, error) { return reply{value: v}, err }

// rejected is an error that replaces the whole reply without the prefix of its route.
type rejected struct{ error }

func (e rejected) Unwrap() error { return e.error }

// compatible answers as upstream's patching API: below /v1 and /patch alike, 200 for every handled request, and 404
// in the form that the client asks for.
func (s *Server) compatible() http.Handler {
	table := map[string]route{}
	for _, rt := range routes {
		if rt.service == PatchingService {
			table[rt.pattern] = rt
		}
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
		for len(path) > 1 && path[len(path)-1] == "" {
			path = path[:len(path)-1]
		}
		if path[0] == "" {
			compatRoot(w, r)
			return
		}
		if path[0] != "v1" && path[0] != "patch" {
			compatNotFound(w, r)
			return
		}
		if len(path) == 1 {
			if !strings.HasSuffix(r.URL.Path, "/") && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
				http.Redirect(w, r, r.URL.Path+"/", http.StatusFound)
				return
			}
			path = append(path, "query")
		}
		rt, ok := table[path[1]]
		if !ok || rt.ids == 0 && len(path) > 2 {
			compatNotFound(w, r)
			return
		}
		s.compat(rt, path[2:], w, r)
	})
}

// compat serves one request of a known route.
func (s *Server) compat(rt route, args []string, w http.ResponseWriter, r *http.Request) {
	defer s.recovered(r, func() { plain(w, http.StatusInternalServerError, serverErrorText) })
	if !allows(rt.methods, r.Method) {
		w.Header().Set("Allow", strings.Join(rt.methods, ", "))
		compatRefuse(w, http.StatusMethodNotAllowed, r.Method+" is not a method of "+rt.pattern+"; use "+strings.Join(rt.methods, " or "))
		return
	}
	c := &call{w: w, r: r, args: args, caller: callerOf(r)}
	if err := admit(c.caller, rt.role); err != nil {
		compatRefuse(w, statusOf(problem.KindOf(err)), err.Error())
		return
	}
	if !acceptsJSON(r) {
		plain(w, http.StatusNotAcceptable, "this API answers application/json")
		return
	}
	if rt.pattern != "upload" {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			compatRefuse(w, http.StatusBadRequest, "cannot read the request's parameters: "+err.Error())
			return
		}
	}
	c.params = r.Form
	rep, err := rt.handle(s, c)
	if err != nil {
		if rep, err = s.compatError(rt, r, err); err != nil {
			plain(w, http.StatusInternalServerError, serverErrorText)
			return
		}
	}
	writeCompat(w, http.StatusOK, rep.value)
}

// compatError is the reply that an error becomes, or the error when it is not for the client to see.
func (s *Server) compatError(rt route, r *http.Request, err error) (reply, error) {
	if problem.KindOf(err) == problem.Internal {
		if r.Context().Err() == nil {
			s.Log.Error("request failed", "req", s.NewID(), "route", rt.pattern, "err", err)
		}
		return reply{}, err
	}
	raise := rt.raise
	if _, ok := errors.AsType[rejected](err); ok || errors.Is(err, patch.ErrInstalling) {
		raise = ""
	}
	return reply{value: api.ErrorOnly{Error: raise + err.Error()}}, nil
}

func allows(methods []string, m string) bool {
	if m == http.MethodHead {
		m = http.MethodGet
	}
	return slices.Contains(methods, m)
}

// accepts lists the media types of the Accept header without parameters; none when there is no header.
func accepts(r *http.Request) []string {
	var out []string
	for _, h := range r.Header.Values("Accept") {
		for t := range strings.SplitSeq(h, ",") {
			t, _, _ = strings.Cut(t, ";")
			out = append(out, strings.ToLower(strings.TrimSpace(t)))
		}
	}
	return out
}

func admits(types []string, want ...string) bool {
	return slices.ContainsFunc(types, func(t string) bool { return slices.Contains(want, t) })
}

func acceptsJSON(r *http.Request) bool {
	t := accepts(r)
	return len(t) == 0 || admits(t, "*/*", "application/*", "application/json")
}

func compatRoot(w http.ResponseWriter, r *http.Request) {
	if t := accepts(r); admits(t, "application/json") && !admits(t, "text/html") {
		writeCompat(w, http.StatusOK, versionText)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	write(w, http.StatusOK, []byte(versionText))
}

func compatNotFound(w http.ResponseWriter, r *http.Request) {
	t := accepts(r)
	switch {
	case admits(t, "text/html", "text/*", "*/*"):
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		write(w, http.StatusNotFound, []byte("<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>404 Not Found</h1><p>No such route.</p></body></html>\n"))
	case admits(t, "application/json", "application/*"):
		writeCompat(w, http.StatusNotFound, struct {
			Code        int     `json:"code"`
			Title       string  `json:"title"`
			Description *string `json:"description"`
		}{404, "Not Found", nil})
	case len(t) == 0:
		plain(w, http.StatusNotFound, "404 Not Found\n\nNo such route.\n")
	default:
		plain(w, http.StatusNotAcceptable, "406 Not Acceptable\n")
	}
}

// compatRefuse answers what upstream's own access layer would, in JSON.
func compatRefuse(w http.ResponseWriter, status int, msg string) {
	writeCompat(w, status, api.ErrorOnly{Error: msg})
}

func writeCompat(w http.ResponseWriter, status int, v any) {
	text, err := compatJSON(v)
	if err != nil {
		panic("internal error: cannot encode a reply: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	write(w, status, text)
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	write(w, status, []byte(text))
}

// write sends a whole body. The client may be gone; there is nobody left to tell.
func write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if _, err := io.Copy(w, bytes.NewReader(body)); err != nil {
		return
	}
}

// recovered keeps a panic in one request from ending the daemon.
func (s *Server) recovered(r *http.Request, answer func()) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			panic(p)
		}
		s.Log.Error("request panicked", "req", s.NewID(), "path", r.URL.Path, "panic", p, "stack", stack())
		answer()
	}
}
