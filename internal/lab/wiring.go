package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/problem"
)

// What the lab tells the controller and the agents: the same keys that an operator would write.

func (l *Lab) compatAddress() string {
	return net.JoinHostPort(l.address(firstController), strconv.Itoa(compatPort+l.PortOffset))
}

// CompatURL is where the token-less compatible API is; empty when it is not open.
func (l *Lab) CompatURL() string {
	if !l.Compat {
		return ""
	}
	return "http://" + l.compatAddress()
}

// makeController writes the controller's configuration and prepares its data before its first start.
func (l *Lab) makeController(ctx context.Context) error {
	settings := map[string]any{
		"name": firstController, "root": l.Root(firstController), "release": Release,
		"data-dir": l.stateDir(firstController, "controller"), "socket": l.Socket(),
		"address": l.address(firstController), "port-offset": l.PortOffset,
	}
	if l.Compat {
		settings["compat-loopback"], settings["compat-address"] = true, l.compatAddress()
	}
	if err := writeYAML(l.controllerConfig(), settings); err != nil {
		return err
	}
	// Others than root may ask some things.
	if err := os.Mkdir(filepath.Dir(l.Socket()), 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, l.program("sw-patch-controller"), "init", "--config", l.controllerConfig())
	cmd.Env = l.environment("tool", "HOME=/root")
	if out, err := cmd.CombinedOutput(); err != nil {
		return problem.Errorf(problem.Unavailable, "cannot prepare the controller: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func writeYAML(path string, settings map[string]any) error {
	text, err := yaml.Marshal(settings)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// setUp gives the running controller the lab's key and base packages, and every host what its agent needs to join.
func (l *Lab) setUp(ctx context.Context, say func(string, ...any)) error {
	c := client.Unix(l.Socket())
	defer c.CloseIdle()
	key, err := os.ReadFile(l.publicKey())
	if err != nil {
		return err
	}
	if _, err := c.AddTrust(ctx, "formal", filepath.Base(l.publicKey()), string(key)); err != nil {
		return fmt.Errorf("cannot have the controller trust the lab's key: %w", err)
	}
	say("bringing in the base packages of release %s", Release)
	if _, err := c.AddFeed(ctx, Release, l.Feed()); err != nil {
		return fmt.Errorf("cannot bring in the base packages: %w", err)
	}
	controller := net.JoinHostPort(l.address(firstController), strconv.Itoa(linkPort+l.PortOffset))
	for _, h := range l.Hosts {
		token, err := c.CreateToken(ctx, h.Name, time.Hour)
		if err != nil {
			return fmt.Errorf("cannot make a join token for %s: %w", h.Name, err)
		}
		if err := os.WriteFile(l.tokenFile(h.Name), []byte(token.Secret+"\n"), 0o600); err != nil {
			return err
		}
		if err := writeYAML(l.agentConfig(h.Name), map[string]any{
			"name": h.Name, "root": l.Root(h.Name), "state-dir": l.stateDir(h.Name, "agent"),
			"controllers": []string{controller}, "local-address": h.Address, "token-file": l.tokenFile(h.Name),
			"driver": "lab", "boot-id-file": filepath.Join(l.Root(h.Name), bootIDFile),
		}); err != nil {
			return err
		}
	}
	return nil
}

// Env is what a shell needs to work with the lab, in the order in which it is printed. PATH is left to the caller.
func (l *Lab) Env() [][2]string {
	env := [][2]string{
		{"STARPATCH_SOCKET", l.Socket()},
		{"LAB_DIR", l.Dir},
		{"LAB_TRUST", l.Trust()},
		{"LAB_SIGNING_KEY", l.SigningKey()},
		{"LAB_RELEASE", Release},
		{"LAB_FEED", l.Feed()},
	}
	if url := l.CompatURL(); url != "" {
		env = append(env, [2]string{"LAB_COMPAT_URL", url})
	}
	return env
}

// ServiceAddress is where a host's service tells its version over HTTP.
func (l *Lab) ServiceAddress(h Host) string {
	return net.JoinHostPort(h.Address, strconv.Itoa(servicePort+l.PortOffset))
}
