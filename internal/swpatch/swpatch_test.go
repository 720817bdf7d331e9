package swpatch

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// result is what one run left behind.
type result struct {
	code           int
	stdout, stderr string
}

// controller answers requests like "GET /v1/query?show=all" with fixed bodies; anything else with 404.
type controller map[string]http.HandlerFunc

func reply(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func refusal(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func (c controller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := c[r.Method+" "+r.URL.RequestURI()]; h != nil {
		h(w, r)
		return
	}
	http.NotFound(w, r)
}

// listen serves c on a unix socket and returns its path.
func (c controller) listen(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sock") // short: socket paths are limited
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(c)
	srv.Listener.Close()
	srv.Listener = l
	srv.Start()
	t.Cleanup(srv.Close)
	return path
}

// environment is a root shell 72 columns wide, without terminals.
func environment(env map[string]string, args ...string) (Env, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	return Env{
		Args: args, Stdout: &stdout, Stderr: &stderr, Width: 72, Version: "test",
		Getenv:          func(k string) string { return env[k] },
		Uninterruptible: func() {},
	}, &stdout, &stderr
}

func (c controller) run(t *testing.T, args ...string) result {
	t.Helper()
	env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": c.listen(t)}, args...)
	code := Run(t.Context(), env)
	return result{code, stdout.String(), stderr.String()}
}

func check(t *testing.T, got, want result) {
	t.Helper()
	if got.code != want.code {
		t.Errorf("got exit code %d, want %d", got.code, want.code)
	}
	if diff := cmp.Diff(strings.SplitAfter(want.stdout, "\n"), strings.SplitAfter(got.stdout, "\n")); diff != "" {
		t.Errorf("standard output (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(want.stderr, got.stderr); diff != "" {
		t.Errorf("standard error (-want +got)\n%s", diff)
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.SplitAfter(string(want), "\n"), strings.SplitAfter(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got)\n%s", name, diff)
	}
}

func TestEveryAnswerOfTheControllerHasItsPrintAndExitCode(t *testing.T) {
	const path = "POST /v1/delete/A"
	for _, tt := range []struct {
		name string
		h    http.HandlerFunc
		args string
		want result
	}{
		{"info", reply(200, `{"info": "A has been deleted\n", "warning": "", "error": ""}`), "delete A",
			result{0, "A has been deleted\n\n", ""}},
		{"warning after info", reply(200, `{"info": "done\n", "warning": "careful\n", "error": ""}`), "delete A",
			result{0, "done\n\nWarning:\ncareful\n\n", ""}},
		{"a refusal", reply(200, `{"info": "", "warning": "", "error": "Patch A not in Available state\n"}`), "delete A",
			result{1, "Error:\nPatch A not in Available state\n\n", ""}},
		{"a refusal that replaces the reply", reply(200, `{"error": "Error: disk full"}`), "delete A",
			result{1, "Error:\nError: disk full\n", ""}},
		{"the reply itself with --debug", reply(200, `{"info": "A has been deleted\n", "warning": "", "error": ""}`), "delete --debug A",
			result{0, "{\n    \"error\": \"\",\n    \"info\": \"A has been deleted\\n\",\n    \"warning\": \"\"\n}\n", ""}},
		{"a refusal with --debug still fails", reply(200, `{"error": "no"}`), "--debug delete A",
			result{1, "{\n    \"error\": \"no\"\n}\n", ""}},
		{"an internal error", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "A server error occurred.", 500) }, "delete A",
			result{1, "An internal error has occurred. Please check /var/log/patching.log for details\n",
				"Error: the patch controller at SOCKET answered: HTTP status 500: A server error occurred.; its log has the rest\n"}},
		{"not allowed", reply(403, `{"error": "uid 7 may only look; ask root"}`), "delete A",
			result{1, "", "Error: uid 7 may only look; ask root\n"}},
		{"nonsense", reply(200, `<html>`), "delete A",
			result{1, "", "Error: cannot read the controller's answer to POST /v1/delete/A: invalid character '<' looking for beginning of value\n"}},
		{"control characters are shown, not obeyed", reply(200, `{"info": "\u001b[2Jgone", "warning": "", "error": ""}`), "delete A",
			result{0, "\\x1b[2Jgone\n", ""}},
		{"a connection cut off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "delete A",
			result{1, "", "Error: lost the connection to the patch controller at SOCKET before it answered; sw-patch query and query-hosts show what was done\n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			socket := controller{path: tt.h}.listen(t)
			env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": socket}, strings.Fields(tt.args)...)
			code := Run(t.Context(), env)
			check(t, result{code, stdout.String(), strings.ReplaceAll(stderr.String(), socket, "SOCKET")}, tt.want)
		})
	}
}

func TestEverySubcommandAsksTheControllerForWhatItSays(t *testing.T) {
	ok := reply(200, `{"info": "yes\n", "warning": "", "error": ""}`)
	yes := result{0, "yes\n\n", ""}
	for _, tt := range []struct {
		args, request string
		h             http.HandlerFunc
		want          result
	}{
		{"apply A B", "POST /v1/apply/A/B", ok, yes},
		{"apply A --skip-semantic", "POST /v1/apply/A?skip-semantic=yes", ok, yes},
		{"apply --all --release 20.01", "POST /v1/apply/--all?release=20.01", ok, yes},
		{"apply --all --release all", "POST /v1/apply/--all", ok, yes},
		{"remove A --removeunremovable --skipappcheck --skip-semantic", "POST /v1/remove/A?removeunremovable=yes&skip-semantic=yes&skipappcheck=yes", ok, yes},
		{"drop-host compute-0", "POST /v1/drop_host/compute-0", ok, yes},
		{"host-install-async compute-0", "POST /v1/host_install_async/compute-0", ok, yes},
		{"host-install-async --force compute-0", "POST /v1/host_install_async/compute-0/force", ok, yes},
		{"what-requires A B", "GET /v1/what_requires/A/B", ok, yes},
		{"what-requires NOPE", "GET /v1/what_requires/NOPE", reply(200, `{"info": "", "warning": "", "error": "Patch NOPE does not exist\n"}`), result{1, "Error:\nPatch NOPE does not exist\n\n", ""}},
		{"query applied --release=19.09", "GET /v1/query?release=19.09&show=applied", reply(200, `{"pd": {}}`), result{0, "Patch ID  RR  Release  Patch State\n========  ==  =======  ===========\n\n", ""}},
		{"query", "GET /v1/query?show=all", reply(200, `{"error": "Error: no"}`), result{1, "Error:\nError: no\n", ""}},
		{"query --debug", "GET /v1/query?show=all", reply(200, `{"pd": {"A": {"repostate": "Available"}}}`), result{0, "{\n    \"A\": {\n        \"repostate\": \"Available\"\n    }\n}\n", ""}},
		{"query-hosts --debug", "GET /v1/query_hosts", reply(200, `{"data": []}`), result{0, "[]\n", ""}},
		{"query-dependencies B --recursive", "GET /v1/query_dependencies/B?recursive=yes", reply(200, `{"patches": ["B", "A"], "error": ""}`), result{0, "A\nB\n", ""}},
		{"query-dependencies NOPE", "GET /v1/query_dependencies/NOPE", reply(200, `{"patches": [], "error": "NOPE is unrecognized\n"}`), result{1, "", "Error: NOPE is unrecognized\n"}},
		{"is-applied A", "POST /v1/is_applied/A", reply(200, `true`), result{0, "True\n", ""}},
		{"is-available A", "POST /v1/is_available/A", reply(200, `false`), result{1, "False\n", ""}},
		{"completion patches", "GET /v1/query?show=all", reply(200, `{"pd": {"B": {}, "A": {}}}`), result{0, "A B\n", ""}},
		{"completion hosts", "GET /v1/query_hosts", reply(200, `{"data": [{"hostname": "b"}, {"hostname": "a"}]}`), result{0, "a\nb\n", ""}},
		{"log 7", "GET /api/v1/operations/7/log", reply(200, `{"id": "7", "output": "dnf said"}`), result{0, "dnf said\n", ""}},
	} {
		t.Run(tt.args, func(t *testing.T) {
			check(t, controller{tt.request: tt.h}.run(t, strings.Fields(tt.args)...), tt.want)
		})
	}
}

func TestApplyAllTakesTheRunningRelease(t *testing.T) {
	ctl := controller{
		"GET /api/v1/status":                 reply(200, `{"release": "19.09"}`),
		"POST /v1/apply/--all?release=19.09": reply(200, `{"info": "A is now in the repo\n", "warning": "", "error": ""}`),
	}
	check(t, ctl.run(t, "apply", "--all"), result{0, "A is now in the repo\n\n", ""})
	delete(ctl, "GET /api/v1/status") // as on the compatibility port
	check(t, ctl.run(t, "apply", "--all"), result{1, "",
		"Error: cannot apply --all without --release here: the compatibility port does not tell the running release; add --release R, or use the controller's socket\n"})
}

func TestCommandLinesThatAreNotUnderstood(t *testing.T) {
	for _, tt := range []struct{ args, reason string }{
		{"", "no subcommand given"},
		{"--debug", "no subcommand given"},
		{"frobnicate", `"frobnicate" is not a subcommand`},
		{"upload", "upload: expected FILE..., with at least one argument"},
		{"apply", "apply: expected patch IDs, or --all"},
		{"apply --alll", "apply: --alll is not an option here; known: --all, --skip-semantic, --release"},
		{"query one two", "query: expected [--release R] [all | applied | available | committed]"},
		{"query installed", `query: "installed" is not a filter; expected one of all, applied, available, committed`},
		{"query --release", "query: option --release needs a value"},
		{"query-hosts x", "query-hosts: no arguments are expected"},
		{"show", "show: expected ID..., with at least one argument"},
		{"host-install", "host-install: expected HOST [--force]"},
		{"host-install a b", "host-install: expected HOST [--force]"},
		{"completion x", `completion: "x" cannot be listed; expected patches or hosts`},
		{"help frobnicate", `"frobnicate" is not a subcommand`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			got := controller{}.run(t, strings.Fields(tt.args)...)
			help := controller{}.run(t, "--help")
			check(t, got, result{1, help.stdout, "Error: " + tt.reason + "\n"})
		})
	}
	for _, tt := range []struct{ args, reason string }{
		{"apply --all A", "--all cannot be combined with patch IDs"},
		{"apply A --release 19.09", "Use of --release option requires --all"},
		{"commit A", "commit is not available in this version yet; nothing was changed"},
		{"query --os-region-name SystemController", "--os-region-name is not available in this version yet: sw-patch speaks to the controller of its own region only"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			check(t, controller{}.run(t, strings.Fields(tt.args)...), result{1, "", "Error: " + tt.reason + "\n"})
		})
	}
}

func TestWithoutRootOnlyLookingIsAllowed(t *testing.T) {
	everybody := map[string]bool{"query": true, "query-hosts": true, "what-requires": true, "completion": true}
	for _, c := range commands() {
		env, _, stderr := environment(map[string]string{"STARPATCH_SOCKET": "/nowhere"}, c.name)
		env.UID = 1000
		Run(t.Context(), env)
		refused := stderr.String() == "Error: Command must be run as sudo or root\n"
		if refused == everybody[c.name] {
			t.Errorf("%s as an ordinary user: got %q", c.name, stderr)
		}
	}
	for _, args := range []string{"--help", "-h", "apply --help"} {
		env, _, _ := environment(nil, strings.Fields(args)...)
		env.UID = 1000
		if code := Run(t.Context(), env); code != 0 {
			t.Errorf("%s as an ordinary user: got exit code %d, want 0", args, code)
		}
	}
	env, _, stderr := environment(nil, "frobnicate")
	env.UID = 1000
	if Run(t.Context(), env); stderr.String() != "Error: Command must be run as sudo or root\n" {
		t.Errorf("an unknown subcommand as an ordinary user: got %q", stderr)
	}
}

func TestOnlyChangesCannotBeInterrupted(t *testing.T) {
	var got []string
	for _, c := range commands() {
		env, _, _ := environment(map[string]string{"STARPATCH_SOCKET": "/nowhere"}, c.name, "x")
		env.Uninterruptible = func() { got = append(got, c.name) }
		Run(t.Context(), env)
	}
	if diff := cmp.Diff([]string{"upload", "upload-dir", "apply", "remove", "delete"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAnUnreachableControllerIsNamedWithWhatToCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		env  map[string]string
		want string
	}{
		{"no socket", map[string]string{"STARPATCH_SOCKET": "/nowhere/s"},
			"Error: cannot reach the patch controller at /nowhere/s: no such file or directory; check that sw-patch-controller runs on this machine, or set STARPATCH_SOCKET to its socket\n"},
		{"no port", map[string]string{"STARPATCH_URL": "http://127.0.0.1:1", "STARPATCH_SOCKET": "/nowhere/s"},
			"Error: cannot reach the patch controller at http://127.0.0.1:1: connection refused; check that a controller runs there with compat-loopback on, or that STARPATCH_URL is right\n"},
		{"not an address", map[string]string{"STARPATCH_URL": "localhost:5487"},
			"Error: cannot use STARPATCH_URL=localhost:5487: expected the address of a compatibility port, like http://127.0.0.1:5487\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			env, stdout, stderr := environment(tt.env, "query")
			code := Run(t.Context(), env)
			check(t, result{code, stdout.String(), stderr.String()}, result{1, "", tt.want})
		})
	}
}

func TestTheSocketOfTheDefaultPlaceIsUsedWhenNoneIsNamed(t *testing.T) {
	if got := socket(func(string) string { return "" }); got != "/run/starpatch/controller.sock" {
		t.Errorf("got %s", got)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

func TestAResultThatCannotBeWrittenFailsTheRun(t *testing.T) {
	env, _, stderr := environment(nil, "--help")
	env.Stdout = fullDisk{}
	if code := Run(t.Context(), env); code != 1 || stderr.String() != "Error: cannot write the result: no space left on device\n" {
		t.Errorf("got %d, %q", code, stderr)
	}
}

func TestVersion(t *testing.T) {
	check(t, controller{}.run(t, "--version"), result{0, "sw-patch test\n", ""})
}

func TestAnInterruptedRequestSaysSo(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	socket := controller{"GET /v1/query?show=all": func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}}.listen(t)
	env, stdout, stderr := environment(map[string]string{"STARPATCH_SOCKET": socket}, "query")
	code := Run(ctx, env)
	check(t, result{code, stdout.String(), stderr.String()}, result{1, "", "Error: interrupted\n"})
}
