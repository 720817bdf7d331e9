package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/problem"
)

// statusOf is the HTTP status of a kind of refusal.
func statusOf(k problem.Kind) int {
	switch k {
	case problem.Invalid:
		return http.StatusBadRequest
	case problem.Forbidden:
		return http.StatusForbidden
	case problem.Unauthorized:
		return http.StatusUnauthorized
	case problem.NotFound:
		return http.StatusNotFound
	case problem.Conflict:
		return http.StatusConflict
	case problem.TooLarge:
		return http.StatusRequestEntityTooLarge
	case problem.Unavailable:
		return http.StatusServiceUnavailable
	case problem.NotSupported:
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

func stack() slog.Value { return slog.StringValue(string(debug.Stack())) }

// refuse answers with a problem document (RFC 9457).
func refuse(w http.ResponseWriter, kind problem.Kind, detail string) {
	refuseAs(w, statusOf(kind), kind, detail)
}

// refuseAs is refuse with a status that no kind has.
func refuseAs(w http.ResponseWriter, status int, kind problem.Kind, detail string) {
	text, err := json.Marshal(api.Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Kind: string(kind)})
	if err != nil {
		panic("internal error: cannot encode a problem: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/problem+json")
	write(w, status, append(text, '\n'))
}

// fail answers with an error; what is our own bug or the environment goes to the log under the request's id.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if k := problem.KindOf(err); k != problem.Internal {
		refuse(w, k, err.Error())
		return
	}
	id := s.NewID()
	if r.Context().Err() == nil {
		s.Log.Error("request failed", "req", id, "path", r.URL.Path, "err", err)
	}
	refuse(w, problem.Internal, "internal error, request "+id)
}

// own serves one route of our API.
func (s *Server) own(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.recovered(r, func() { refuse(w, problem.Internal, "internal error") })
		c := &call{w: w, r: r, caller: callerOf(r)}
		if err := admit(c.caller, rt.role); err != nil {
			refuse(w, problem.KindOf(err), err.Error())
			return
		}
		rep, err := rt.handle(s, c)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		if rep.value == nil && rep.status == 0 {
			return // the handler wrote it
		}
		writeOwn(w, rep)
	})
}

func writeOwn(w http.ResponseWriter, rep reply) {
	if rep.value == nil {
		w.WriteHeader(rep.status)
		return
	}
	text, err := json.Marshal(rep.value)
	if err != nil {
		panic("internal error: cannot encode a reply: " + err.Error())
	}
	w.Header().Set("Content-Type", "application/json")
	write(w, cmp.Or(rep.status, http.StatusOK), append(text, '\n'))
}

// unknown answers paths and methods that the mux does not know with problem documents.
func (s *Server) unknown(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		if allowed := methodsOf(mux, r); len(allowed) > 0 {
			w.Header().Set("Allow", strings.Join(allowed, ", "))
			refuseAs(w, http.StatusMethodNotAllowed, problem.Invalid, r.Method+" is not a method of this route; use "+strings.Join(allowed, " or "))
			return
		}
		refuse(w, problem.NotFound, "no such route: "+r.URL.Path)
	})
}

// methodsOf returns the methods under which the mux knows the request's path.
func methodsOf(mux *http.ServeMux, r *http.Request) []string {
	var out []string
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		try := r.Clone(r.Context())
		try.Method = m
		if _, pattern := mux.Handler(try); pattern != "" {
			out = append(out, m)
		}
	}
	return out
}

// body reads the JSON of a request strictly.
func body(c *call, into any) error {
	d := json.NewDecoder(http.MaxBytesReader(c.w, c.r.Body, maxForm))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return problem.Errorf(problem.Invalid, "the request has no body; a JSON object is expected")
		}
		return problem.Errorf(problem.Invalid, "cannot read the request: %v", err)
	}
	return nil
}

// The handlers of our own service, in the order of the route table.

func (s *Server) healthy(*call) (reply, error) {
	return said(map[string]string{"status": "ok"}, nil)
}

func (s *Server) ready(*call) (reply, error) {
	if s.Ready != nil {
		if err := s.Ready(); err != nil {
			return reply{}, problem.Errorf(problem.Unavailable, "not ready: %v", err)
		}
	}
	return said(map[string]string{"status": "ready"}, nil)
}

func (s *Server) status(c *call) (reply, error) { return said(s.Administration.Status(c.r.Context())) }

func (s *Server) installHost(c *call) (reply, error) {
	var req api.InstallRequest
	if c.r.ContentLength != 0 {
		if err := body(c, &req); err != nil {
			return reply{}, err
		}
	}
	if req.Force && c.caller.Role < Admin {
		return reply{}, problem.Errorf(problem.Forbidden, "%s may not force an installation", c.caller.Name)
	}
	op, err := s.Patching.InstallHost(c.r.Context(), c.caller.Name, c.r.PathValue("host"), req.Force)
	if err != nil {
		return reply{}, err
	}
	c.w.Header().Set("Location", "/api/v1/operations/"+op.ID)
	return reply{status: http.StatusAccepted, value: op}, nil
}

// operation returns an operation, or a stream of its states when the client asks for events.
func (s *Server) operation(c *call) (reply, error) {
	id := c.r.PathValue("id")
	if admits(accepts(c.r), "text/event-stream") {
		return reply{}, s.followOperation(c, id)
	}
	return said(s.Administration.Operation(c.r.Context(), id))
}

// followOperation sends every state of an operation as a server-sent event until the final one.
func (s *Server) followOperation(c *call, id string) error {
	started := false
	out := http.NewResponseController(c.w)
	err := s.Administration.FollowOperation(c.r.Context(), id, func(o api.Operation) error {
		text, err := json.Marshal(o)
		if err != nil {
			return err
		}
		if !started {
			c.w.Header().Set("Content-Type", "text/event-stream")
			c.w.Header().Set("Cache-Control", "no-store")
			c.w.WriteHeader(http.StatusOK)
			started = true
		}
		if _, err := io.WriteString(c.w, "id: "+strconv.FormatInt(o.Version, 10)+"\nevent: operation\ndata: "+string(text)+"\n\n"); err != nil {
			return err
		}
		return out.Flush()
	})
	if started {
		return nil // the stream is its own answer; a watcher that went away or comes again is nothing to report
	}
	return err
}

func (s *Server) operationLog(c *call) (reply, error) {
	return said(s.Administration.OperationLog(c.r.Context(), c.r.PathValue("id")))
}

func (s *Server) tokens(c *call) (reply, error) { return said(s.Administration.Tokens(c.r.Context())) }

func (s *Server) createToken(c *call) (reply, error) {
	var req api.TokenRequest
	if err := body(c, &req); err != nil {
		return reply{}, err
	}
	t, err := s.Administration.CreateToken(c.r.Context(), c.caller.Name, req)
	return reply{status: http.StatusCreated, value: t}, err
}

func (s *Server) trust(c *call) (reply, error) { return said(s.Administration.Trust(c.r.Context())) }

func (s *Server) addTrust(c *call) (reply, error) {
	var req api.TrustRequest
	if err := body(c, &req); err != nil {
		return reply{}, err
	}
	k, err := s.Administration.AddTrust(c.r.Context(), c.caller.Name, req)
	return reply{status: http.StatusCreated, value: k}, err
}

func (s *Server) removeTrust(c *call) (reply, error) {
	return reply{status: http.StatusNoContent}, s.Administration.RemoveTrust(c.r.Context(), c.caller.Name, c.r.PathValue("class"), c.r.PathValue("name"))
}

func (s *Server) feeds(c *call) (reply, error) { return said(s.Administration.Feeds(c.r.Context())) }

func (s *Server) addFeed(c *call) (reply, error) {
	var req api.FeedRequest
	if err := body(c, &req); err != nil {
		return reply{}, err
	}
	f, err := s.Administration.AddFeed(c.r.Context(), c.caller.Name, req)
	return reply{status: http.StatusCreated, value: f}, err
}

func (s *Server) journal(c *call) (reply, error) {
	after := int64(0)
	if v := c.r.URL.Query().Get("after"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return reply{}, problem.Errorf(problem.Invalid, "after=%q is not the number of a journal record", v)
		}
		after = n
	}
	return said(s.Administration.Journal(c.r.Context(), after))
}

func (s *Server) verifyJournal(c *call) (reply, error) {
	return said(s.Administration.VerifyJournal(c.r.Context()))
}
