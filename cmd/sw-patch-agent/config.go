package main

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/config"
	"github.com/starpatch/starpatch/problem"
)

const (
	defaultConfig   = "/etc/starpatch/agent.yaml"
	defaultStateDir = "/var/lib/starpatch/agent"
	kernelBootID    = "/proc/sys/kernel/random/boot_id"
)

// The drivers: what tells the agent about the machine below the packages.
const (
	driverSystemd = "systemd"
	driverLab     = "lab"
)

// fileConfig is the configuration file.
type fileConfig struct {
	Name         string        `yaml:"name"`          // this host's name; empty: the machine's
	Root         string        `yaml:"root"`          // root folder of the host
	StateDir     string        `yaml:"state-dir"`     // what must survive
	CacheDir     string        `yaml:"cache-dir"`     // metadata and packages; empty: cache below state-dir
	Controllers  []string      `yaml:"controllers"`   // host:port of each
	LocalAddress string        `yaml:"local-address"` // IP address to connect from; empty: any
	TokenFile    string        `yaml:"token-file"`    // join token, used until the host has joined
	Personality  string        `yaml:"personality"`   // empty: from etc/platform/platform.conf below root
	Release      string        `yaml:"release"`       // empty: from etc/build.info below root
	Driver       string        `yaml:"driver"`        // systemd or lab
	BootIDFile   string        `yaml:"boot-id-file"`  // one line, another one after every boot; empty: the driver's
	RPMKeys      []string      `yaml:"rpm-keys"`      // files of GPG keys; with any, unsigned packages are refused
	ScriptLimit  time.Duration `yaml:"script-limit"`  // for one in-service script
	LogLevel     string        `yaml:"log-level"`     // debug, info, warn or error
}

// loadConfig reads the file and fills in and checks everything that can be known without the controllers.
func loadConfig(path string) (fileConfig, error) {
	c := fileConfig{Root: "/", StateDir: defaultStateDir, Driver: driverSystemd, ScriptLimit: 10 * time.Minute, LogLevel: "info"}
	if err := config.Load(path, &c); err != nil {
		return c, err
	}
	if c.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, err
		}
		c.Name, _, _ = strings.Cut(name, ".")
	}
	if err := host.CheckName(c.Name); err != nil {
		return c, err
	}
	if c.CacheDir == "" {
		c.CacheDir = filepath.Join(c.StateDir, "cache")
	}
	for _, d := range []struct{ key, path string }{{"root", c.Root}, {"state-dir", c.StateDir}, {"cache-dir", c.CacheDir}} {
		if !filepath.IsAbs(d.path) {
			return c, problem.Errorf(problem.Invalid, "%s must be an absolute path, not %q", d.key, d.path)
		}
	}
	switch c.Driver {
	case driverSystemd:
		if c.BootIDFile == "" {
			c.BootIDFile = kernelBootID
		}
	case driverLab:
		if c.BootIDFile == "" {
			c.BootIDFile = filepath.Join(c.Root, "run/boot-id")
		}
	default:
		return c, problem.Errorf(problem.Invalid, "driver must be systemd or lab, not %q", c.Driver)
	}
	if c.LocalAddress != "" {
		if _, err := netip.ParseAddr(c.LocalAddress); err != nil {
			return c, problem.Errorf(problem.Invalid, "local-address must be an IP address, not %q", c.LocalAddress)
		}
	}
	if len(c.Controllers) == 0 {
		return c, problem.Errorf(problem.Invalid, "configuration %s names no controllers; give at least one host:port", path)
	}
	if c.ScriptLimit <= 0 {
		return c, problem.Errorf(problem.Invalid, "script-limit must be more than 0, not %s", c.ScriptLimit)
	}
	return c, nil
}

// identityDir is where key and certificates are.
func (c fileConfig) identityDir() string { return filepath.Join(c.StateDir, "pki") }

// dialer connects from the address that was configured.
func (c fileConfig) dialer() agentlink.Dialer {
	var local netip.Addr
	if c.LocalAddress != "" {
		local = netip.MustParseAddr(c.LocalAddress) // checked by loadConfig
	}
	return agentlink.DialFrom(local)
}

// token reads the join token.
func (c fileConfig) token() (string, error) {
	if c.TokenFile == "" {
		return "", problem.Errorf(problem.Invalid, "host %s has not joined; make a token on a controller (sw-patch-controller token create %s) and set token-file", c.Name, c.Name)
	}
	b, err := os.ReadFile(c.TokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", problem.Errorf(problem.Invalid, "host %s has not joined and its token file %s does not exist; make a token on a controller: sw-patch-controller token create %s", c.Name, c.TokenFile, c.Name)
	}
	return strings.TrimSpace(string(b)), err
}
