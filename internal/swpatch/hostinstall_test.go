package swpatch

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/problem"
)

const (
	install   = "POST /api/v1/hosts/compute-0/install"
	operation = "GET /api/v1/operations/op1"
)

func encode(t *testing.T, o api.Operation) string {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// follow streams states; the connection ends after the last of them, final or not.
func follow(t *testing.T, states ...api.Operation) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("got Accept %q", r.Header.Get("Accept"))
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, o := range states {
			fmt.Fprintf(w, "id: %d\nevent: operation\ndata: %s\n\n", o.Version, encode(t, o))
		}
	}
}

func state(version int64, s, detail string) api.Operation {
	return api.Operation{ID: "op1", Host: "compute-0", State: s, Detail: detail, Version: version}
}

func requested(t *testing.T) http.HandlerFunc {
	return reply(202, encode(t, state(1, api.OperationRequested, "")))
}

func TestHostInstallTellsHowItEnded(t *testing.T) {
	for _, tt := range []struct {
		name  string
		final api.Operation
		want  result
	}{
		{"success", state(3, api.OperationDone, ""), result{0, "\nInstallation was successful.\n", ""}},
		{"failure, with the reason and where to read more", state(3, api.OperationFailed, "dnf: transaction test failed"), result{1, "\nInstallation failed. Please check logs for details.\n",
			"Error: dnf: transaction test failed\nWhat the package tools said: sw-patch log op1\n"}},
		{"rejected", state(3, api.OperationRejected, "compute-0 is unlocked and A needs a reboot; lock it first"), result{1, "\nInstallation rejected. Node must be locked\n",
			"Error: compute-0 is unlocked and A needs a reboot; lock it first\n"}},
		{"rejected for the usual reason", state(3, api.OperationRejected, "Node must be locked."), result{1, "\nInstallation rejected. Node must be locked\n", ""}},
		{"services that must restart", state(3, api.OperationRestartPending, "restart pending: peer-svc, audit"), result{1, "\nInstalled; restart pending: peer-svc, audit\n", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctl := controller{install: requested(t), operation: follow(t, state(1, api.OperationRequested, ""), state(2, api.OperationRunning, ""), tt.final)}
			check(t, ctl.run(t, "host-install", "compute-0"), tt.want)
		})
	}
}

func TestHostInstallShowsDotsToATerminal(t *testing.T) {
	ctl := controller{install: requested(t), operation: follow(t, state(1, api.OperationRequested, ""), state(2, api.OperationAccepted, ""), state(3, api.OperationRunning, ""), state(4, api.OperationDone, ""))}
	env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": ctl.listen(t)}, "host-install", "compute-0")
	env.Dots = true
	code := Run(t.Context(), env)
	check(t, result{code, stdout.String(), stderr.String()}, result{0, "...\nInstallation was successful.\n", ""})
}

func TestHostInstallOutlivesARestartOfTheController(t *testing.T) {
	calls := 0
	streams := []http.HandlerFunc{
		follow(t, state(1, api.OperationRequested, "")),
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		refusal(503, `{"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "the controller is starting", "kind": "unavailable"}`),
		follow(t, state(1, api.OperationRequested, ""), state(7, api.OperationDone, "")),
	}
	ctl := controller{install: requested(t), operation: func(w http.ResponseWriter, r *http.Request) {
		calls++
		streams[calls-1](w, r)
	}}
	check(t, ctl.run(t, "host-install", "compute-0"), result{0, "\nInstallation was successful.\n", ""})
}

func TestHostInstallThatIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
		want result
	}{
		{"an unknown host", refusal(404, `{"status": 404, "detail": "Unknown host specified: compute-0", "kind": "not-found"}`),
			result{1, "Error:\nUnknown host specified: compute-0\n\n", ""}},
		{"a host that is offline", refusal(409, `{"status": 409, "detail": "compute-0 is offline, last seen 2026-01-01 00:00:00 UTC", "kind": "conflict"}`),
			result{1, "Error:\ncompute-0 is offline, last seen 2026-01-01 00:00:00 UTC\n\n", ""}},
		{"not root", refusal(403, `{"status": 403, "detail": "uid 7 may only look", "kind": "forbidden"}`),
			result{1, "Error:\nuid 7 may only look\n\n", ""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check(t, controller{install: tt.h}.run(t, "host-install", "compute-0"), tt.want)
		})
	}
}

func TestHostInstallForces(t *testing.T) {
	ctl := controller{operation: follow(t, state(2, api.OperationDone, "")), install: func(w http.ResponseWriter, r *http.Request) {
		var req api.InstallRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || !req.Force {
			t.Errorf("got %+v, %v, want force", req, err)
		}
		requested(t)(w, r)
	}}
	check(t, ctl.run(t, "host-install", "--force", "compute-0"), result{0, "\nInstallation was successful.\n", ""})
}

func TestHostInstallOfAnOperationThatIsGone(t *testing.T) {
	ctl := controller{install: requested(t), operation: refusal(404, `{"status": 404, "detail": "there is no operation op1", "kind": "not-found"}`)}
	check(t, ctl.run(t, "host-install", "compute-0"), result{1, "", "Error: there is no operation op1\n"})
}

func TestHostInstallNeedsTheOwnAPI(t *testing.T) {
	srv := httptest.NewServer(controller{})
	defer srv.Close()
	env, stdout, stderr := environment(map[string]string{"STARPATCH_URL": srv.URL}, "host-install", "compute-0")
	code := Run(t.Context(), env)
	check(t, result{code, stdout.String(), stderr.String()}, result{1, "",
		"Error: cannot follow an installation over the compatibility port: unset STARPATCH_URL to use the controller's socket, or use host-install-async compute-0 and query-hosts\n"})
}

func TestAWaitThatEndsEarlySaysThatTheInstallationGoesOn(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		want result
	}{
		{"the controller is gone for good", problem.Errorf(problem.Unavailable, "no answer"), result{1, "Lost communications with the patch controller\n",
			"The installation on compute-0 may go on. When the controller is back, sw-patch query-hosts shows how it ends.\n"}},
		{"the operator has enough", context.Canceled, result{1, "",
			"Error: interrupted; the installation on compute-0 goes on: sw-patch query-hosts shows how it ends\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env, stdout, stderr := environment(nil)
			s := &session{Env: env, out: cli.NewOutput(stdout)}
			code := s.end(s.lost("compute-0", tt.err))
			check(t, result{code, stdout.String(), stderr.String()}, tt.want)
		})
	}
}
