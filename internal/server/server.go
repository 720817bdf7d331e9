// Package server turns HTTP requests into calls and their results into replies. It holds no rule of patching: routes,
// who may call them, and how a refusal looks in each of the APIs are all that it knows. The routes are one table, in
// routes.go.
package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"

	"github.com/starpatch/starpatch/api"
)

// Patching is what the compatible patching API calls. A refusal that the original answers in the lines of its messages
// comes back in them; an error replaces the whole reply. actor says who asks, for the journal.
type Patching interface {
	// Upload reads one patch file, named as the client named it, to its end or to the first reason to refuse it.
	Upload(ctx context.Context, actor, filename string, body io.Reader) (api.Messages, error)
	Apply(ctx context.Context, actor string, ids []string, o api.ApplyOptions) (api.Messages, error)
	Remove(ctx context.Context, actor string, ids []string, o api.RemoveOptions) (api.Messages, error)
	Delete(ctx context.Context, actor string, ids []string) (api.Messages, error)
	Query(ctx context.Context, show, release string) (api.Query, error)
	Show(ctx context.Context, ids []string) (api.Show, error)
	QueryHosts(ctx context.Context) (api.QueryHosts, error)
	DropHost(ctx context.Context, actor, host string) (api.Messages, error)
	WhatRequires(ctx context.Context, ids []string) (api.Messages, error)
	QueryDependencies(ctx context.Context, ids []string, recursive bool) (api.Dependencies, error)
	IsApplied(ctx context.Context, ids []string) (bool, error)
	IsAvailable(ctx context.Context, ids []string) (bool, error)
	// InstallHost saves the request and returns the operation; host is a name or an IP address.
	InstallHost(ctx context.Context, actor, host string, force bool) (api.Operation, error)
}

// Administration is what our own API calls besides.
type Administration interface {
	Status(ctx context.Context) (api.Status, error)
	Operation(ctx context.Context, id string) (api.Operation, error)
	// FollowOperation calls each with the present state of an operation and with every change until it is final, ctx
	// ends or each fails.
	FollowOperation(ctx context.Context, id string, each func(api.Operation) error) error
	OperationLog(ctx context.Context, id string) (api.OperationLog, error)
	CreateToken(ctx context.Context, actor string, req api.TokenRequest) (api.Token, error)
	Tokens(ctx context.Context) ([]api.Token, error)
	Trust(ctx context.Context) ([]api.TrustKey, error)
	AddTrust(ctx context.Context, actor string, req api.TrustRequest) (api.TrustKey, error)
	RemoveTrust(ctx context.Context, actor, class, name string) error
	Feeds(ctx context.Context) ([]api.ReleaseStatus, error)
	AddFeed(ctx context.Context, actor string, req api.FeedRequest) (api.ReleaseStatus, error)
	Journal(ctx context.Context, after int64) (api.JournalPage, error)
	VerifyJournal(ctx context.Context) (api.JournalCheck, error)
}

// Config are the parts that a Server is made of. All but Ready must be set for the services that are served.
type Config struct {
	Patching       Patching
	Administration Administration
	Files          Files
	Log            *slog.Logger
	NewID          func() string // of a request, for the log and the answer to an internal error
	Ready          func() error  // nil: always ready
	MaxUpload      int64         // bytes of one upload request; 0: no limit
}

// Files is what the repository service serves.
type Files interface {
	// Open returns a regular file of the base feeds ("feed/rel-R/...") or of the update repositories
	// ("updates/rel-R/..."), and whether its content can ever change. The caller closes it.
	Open(path string) (file *os.File, immutable bool, err error)
}

// Server answers requests. It has no state of its own beyond its parts and is safe for concurrent use.
type Server struct {
	Config
}

// New returns a Server of these parts.
func New(c Config) *Server { return &Server{c} }

// Handler serves the given services to one listener, whose requests access tells the callers of.
func (s *Server) Handler(access Access, services ...Service) http.Handler {
	mux := map[Service]http.Handler{}
	for _, svc := range services {
		mux[svc] = s.service(svc)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		svc := serviceOf(r.URL.Path, services)
		h, ok := mux[svc]
		if !ok {
			http.NotFound(w, r)
			return
		}
		caller := access(r)
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, caller)))
	})
}

// service returns the mux of one service.
func (s *Server) service(svc Service) http.Handler {
	if svc == PatchingService {
		return s.compatible()
	}
	mux := http.NewServeMux()
	for _, rt := range routes {
		if rt.service != svc {
			continue
		}
		for _, m := range rt.methods {
			mux.Handle(m+" "+rt.pattern, s.own(rt))
		}
	}
	return s.unknown(mux)
}
