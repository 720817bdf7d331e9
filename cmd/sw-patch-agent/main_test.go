package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// agentRun runs the command line and returns exit code, standard output and standard error.
func agentRun(t *testing.T, args ...string) (int, string, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), args, &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRefusalsSayWhatToDo(t *testing.T) {
	const good = "name: compute-0\ncontrollers: ['192.0.2.1:5489']\n"
	for _, c := range []struct {
		name, config string
		code         int
		says         string
	}{
		{"an unknown key", good + "contollers: []\n", exitFailure, "contollers"},
		{"no controllers", "name: compute-0\n", exitFailure, "names no controllers; give at least one host:port"},
		{"a name that no host can have", "name: Compute_0\ncontrollers: [a:1]\n", exitFailure, "not a host name"},
		{"a relative root", good + "root: here\n", exitFailure, "root must be an absolute path"},
		{"an unknown driver", good + "driver: magic\n", exitFailure, "driver must be systemd or lab"},
		{"a local address that is none", good + "local-address: here\n", exitFailure, "local-address must be an IP address"},
		{"an unknown log level", good + "log-level: loud\n", exitFailure, "log-level must be debug, info, warn or error"},
		{"no time for scripts", good + "script-limit: 0s\n", exitFailure, "script-limit must be more than 0"},
		{"a host that has not joined and has no token", good + "state-dir: STATE\n", exitFailure, "make a token on a controller"},
		{"a token file that is not there", good + "state-dir: STATE\ntoken-file: /nonexistent\n", exitFailure, "token file /nonexistent does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := configFile(t, strings.ReplaceAll(c.config, "STATE", t.TempDir()))
			code, out, err := agentRun(t, "--config", path)
			if code != c.code || out != "" || !strings.Contains(err, c.says) {
				t.Errorf("exit code %d, stdout %q, stderr %q; want %d and %q", code, out, err, c.code, c.says)
			}
		})
	}
}

func TestCommandLine(t *testing.T) {
	if code, out, _ := agentRun(t, "--version"); code != exitOK || !strings.HasPrefix(out, "sw-patch-agent version ") {
		t.Errorf("--version: %d, %q", code, out)
	}
	for _, arg := range []string{"--help", "-h"} {
		if code, out, err := agentRun(t, arg); code != exitOK || err != "" || !strings.Contains(out, "Usage:\n  sw-patch-agent [flags]\n") || !strings.Contains(out, "      --ready-fd descriptor ") {
			t.Errorf("%s: %d, %q, %q", arg, code, out, err)
		}
	}
	if code, _, err := agentRun(t, "--bogus"); code != exitUsage || !strings.Contains(err, "bogus") {
		t.Errorf("--bogus: %d, %q", code, err)
	}
	if code, _, err := agentRun(t, "extra"); code != exitUsage || !strings.Contains(err, "extra") {
		t.Errorf("extra: %d, %q", code, err)
	}
	if code, _, err := agentRun(t, "--config", "/nonexistent"); code != exitFailure || !strings.Contains(err, "/nonexistent does not exist") {
		t.Errorf("no configuration: %d, %q", code, err)
	}
	path := configFile(t, "name: compute-0\ncontrollers: ['192.0.2.1:5489']\nroot: /hosts/compute-0\ndriver: lab\n")
	if code, out, err := agentRun(t, "--config", path, "--print-config"); code != exitOK || !strings.Contains(out, "boot-id-file: /hosts/compute-0/run/boot-id\n") || !strings.Contains(out, "script-limit: 10m0s\n") {
		t.Errorf("--print-config: %d, %q, %q", code, out, err)
	}
}
