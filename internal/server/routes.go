package server

import (
	"slices"
	"strings"
)

// Service is a group of routes with one style of refusals. A listener names the services that it serves.
type Service string

// The services.
const (
	PatchingService   Service = "patching"   // upstream's patching API, answering as upstream does
	OwnService        Service = "own"        // /api/v1, /healthz, /readyz: real status codes and problem documents
	RepositoryService Service = "repository" // packages for agents
)

// Role is what a caller must at least be.
type Role int

// The roles. Agent stands apart: a host with a certificate may fetch packages and nothing else.
const (
	Open     Role = iota // anybody
	Local                // any user of this machine, by the unix socket
	Reader               // may see everything
	Operator             // may change, but not force
	Admin                // may do everything
	Agent
)

// access methods and argument counts, so that the table fits a page.
var (
	get  = []string{"GET"}
	post = []string{"POST"}
	del  = []string{"DELETE"}
	both = []string{"GET", "POST"}
)

// many stands for any number of further segments.
const many = -1

// route is one line of the API. For the patching service pattern is the segment after /v1/ or /patch/ and ids says how
// many segments may follow; elsewhere pattern is one of net/http's. raise is what stands before an error that replaces
// the whole reply (patching only).
type route struct {
	service Service
	methods []string
	pattern string
	ids     int
	role    Role
	raise   string
	handle  func(*Server, *call) (reply, error)
}

// routes is the whole API.
var routes = []route{
	{PatchingService, both, "query", 0, Local, "Error: ", (*Server).query},
	{PatchingService, both, "show", many, Reader, "Error: ", (*Server).show},
	{PatchingService, post, "upload", 0, Operator, "", (*Server).upload},
	{PatchingService, post, "upload_dir", 0, Operator, "", (*Server).uploadDir},
	{PatchingService, post, "apply", many, Operator, "Error: ", (*Server).apply},
	{PatchingService, post, "remove", many, Operator, "Error: ", (*Server).remove},
	{PatchingService, post, "delete", many, Operator, "Error: ", (*Server).delete},
	{PatchingService, both, "query_hosts", many, Local, "", (*Server).queryHosts},
	{PatchingService, both, "what_requires", many, Local, "Error: ", (*Server).whatRequires},
	{PatchingService, both, "query_dependencies", many, Reader, "", (*Server).queryDependencies},
	{PatchingService, both, "is_applied", many, Reader, "", (*Server).isApplied},
	{PatchingService, both, "is_available", many, Reader, "", (*Server).isAvailable},
	{PatchingService, post, "host_install", many, Operator, "", (*Server).hostInstall},
	{PatchingService, post, "host_install_async", many, Operator, "Error: ", (*Server).hostInstallAsync},
	{PatchingService, post, "drop_host", many, Admin, "Error: ", (*Server).dropHost},
	{PatchingService, post, "commit", many, Admin, "", (*Server).notYet},
	{PatchingService, post, "commit_dry_run", many, Admin, "", (*Server).notYet},
	{PatchingService, post, "init_release", many, Admin, "", (*Server).notYet},
	{PatchingService, post, "del_release", many, Admin, "", (*Server).notYet},
	{PatchingService, post, "report_app_dependencies", many, Operator, "", (*Server).notYet},
	{PatchingService, both, "query_app_dependencies", 0, Reader, "", (*Server).notYet},

	{OwnService, get, "/healthz", 0, Open, "", (*Server).healthy},
	{OwnService, get, "/readyz", 0, Open, "", (*Server).ready},
	{OwnService, get, "/api/v1/status", 0, Reader, "", (*Server).status},
	{OwnService, post, "/api/v1/hosts/{host}/install", 0, Operator, "", (*Server).installHost},
	{OwnService, get, "/api/v1/operations/{id}", 0, Reader, "", (*Server).operation},
	{OwnService, get, "/api/v1/operations/{id}/log", 0, Reader, "", (*Server).operationLog},
	{OwnService, get, "/api/v1/tokens", 0, Admin, "", (*Server).tokens},
	{OwnService, post, "/api/v1/tokens", 0, Admin, "", (*Server).createToken},
	{OwnService, get, "/api/v1/trust", 0, Reader, "", (*Server).trust},
	{OwnService, post, "/api/v1/trust", 0, Admin, "", (*Server).addTrust},
	{OwnService, del, "/api/v1/trust/{class}/{name}", 0, Admin, "", (*Server).removeTrust},
	{OwnService, get, "/api/v1/feeds", 0, Reader, "", (*Server).feeds},
	{OwnService, post, "/api/v1/feeds", 0, Admin, "", (*Server).addFeed},
	{OwnService, get, "/api/v1/journal", 0, Admin, "", (*Server).journal},
	{OwnService, get, "/api/v1/journal/verify", 0, Admin, "", (*Server).verifyJournal},

	{RepositoryService, get, "/feed/{path...}", 0, Agent, "", (*Server).file},
	{RepositoryService, get, "/updates/{path...}", 0, Agent, "", (*Server).file},
}

// prefixes say which service a path belongs to; the last resort is the patching service, whose root is "/".
var prefixes = []struct {
	prefix  string
	service Service
}{
	{"/api/", OwnService}, {"/healthz", OwnService}, {"/readyz", OwnService},
	{"/feed/", RepositoryService}, {"/updates/", RepositoryService},
	{"/", PatchingService},
}

// serviceOf returns the service that answers for a path on a listener with these services.
func serviceOf(path string, served []Service) Service {
	for _, p := range prefixes {
		if strings.HasPrefix(path, p.prefix) && slices.Contains(served, p.service) {
			return p.service
		}
	}
	return OwnService
}
