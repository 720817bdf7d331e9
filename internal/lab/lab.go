// Package lab runs a cluster of real hosts on one Linux machine.
//
// A host is a folder with its own package database, configuration and /run, and a PID and mount namespace whose first
// process ([RunInit]) plays init: it starts the agent, the services and, on controller-0, the controller. One keeper
// per lab ([RunKeeper]) lives outside and plays the power switch: when a host's init ends, for whatever reason, the
// keeper starts the host again. Nothing else is pretended: packages, installations, services and reboots are real.
//
// Nothing outlives a lab: every namespace ends with its init, every init ends with its keeper (the kernel sees to both),
// and all of them carry the lab's mark in their environment, by which [Down] finds whatever is left.
package lab

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/problem"
)

// format is the number of lab.json's layout.
const format = 1

// Lab is what lab.json in a lab's folder keeps.
type Lab struct {
	Format     int    `json:"format"`
	ID         string `json:"id"`  // unique among the labs that run on this machine
	Dir        string `json:"dir"` // absolute
	Made       bool   `json:"made_dir"`
	Topology   string `json:"topology"`
	PortOffset int    `json:"port_offset"` // added to every default port
	Compat     bool   `json:"compat"`      // controller-0 has the token-less compatible API open
	NetNS      bool   `json:"netns"`       // hosts have network namespaces of their own
	Bare       bool   `json:"bare"`        // hosts without controller and agents
	Bin        string `json:"bin"`         // folder with the other programs
	Hosts      []Host `json:"hosts"`       // sorted by name
}

// Host is one host of a lab.
type Host struct {
	Name        string           `json:"name"`
	Address     string           `json:"address"`
	Personality host.Personality `json:"personality"`
}

// firstController is the host that runs the controller.
const firstController = "controller-0"

// The default ports that a lab's processes use; each is shifted by the lab's offset.
const (
	linkPort    = 5489
	compatPort  = 5487
	repoPort    = 8443
	servicePort = 9090
)

// Host finds a host by name.
func (l *Lab) Host(name string) (Host, error) {
	i := slices.IndexFunc(l.Hosts, func(h Host) bool { return h.Name == name })
	if i < 0 {
		return Host{}, problem.Errorf(problem.NotFound, "the lab in %s has no host %q; its hosts are %s", l.Dir, name, l.names())
	}
	return l.Hosts[i], nil
}

func (l *Lab) names() string {
	var all []string
	for _, h := range l.Hosts {
		all = append(all, h.Name)
	}
	return strings.Join(all, ", ")
}

// Where things are. Sockets have paths below /run because a socket's path has at most 107 bytes.
func (l *Lab) file() string               { return filepath.Join(l.Dir, "lab.json") }
func (l *Lab) runDir() string             { return filepath.Join(runRoot, l.ID) }
func (l *Lab) keeperSocket() string       { return filepath.Join(l.runDir(), "keeper.sock") }
func (l *Lab) keeperLog() string          { return filepath.Join(l.Dir, "log", "keeper.log") }
func (l *Lab) hostDir(host string) string { return filepath.Join(l.Dir, "hosts", host) }
func (l *Lab) logFile(host, name string) string {
	return filepath.Join(l.hostDir(host), "log", name+".log")
}
func (l *Lab) agentConfig(host string) string { return filepath.Join(l.hostDir(host), "agent.yaml") }
func (l *Lab) tokenFile(host string) string   { return filepath.Join(l.hostDir(host), "join-token") }
func (l *Lab) controllerConfig() string {
	return filepath.Join(l.hostDir(firstController), "controller.yaml")
}
func (l *Lab) program(name string) string { return filepath.Join(l.Bin, name) }
func (l *Lab) keysDir() string            { return filepath.Join(l.Dir, "keys") }
func (l *Lab) stateDir(host, part string) string {
	return filepath.Join(l.Root(host), "var/lib/starpatch", part)
}

// Root is the folder that a host sees as /.
func (l *Lab) Root(host string) string { return filepath.Join(l.hostDir(host), "root") }

// Socket is the controller's unix socket.
func (l *Lab) Socket() string { return filepath.Join(l.runDir(), firstController, "controller.sock") }

// Feed is the folder with the base packages.
func (l *Lab) Feed() string { return filepath.Join(l.Dir, "feed") }

// Trust is the folder with the public keys that patches are verified with, by class.
func (l *Lab) Trust() string { return filepath.Join(l.Dir, "trust") }

// SigningKey is the private key, of class formal, that the lab's operator signs patches with.
func (l *Lab) SigningKey() string { return filepath.Join(l.keysDir(), "formal-private-key.pem") }

// parts are the entries of a lab's folder that up makes and down removes.
var parts = []string{"hosts", "log", "feed", "trust", "keys", "lab.json"}

// errNoLab says that a folder holds no lab.
var errNoLab = errors.New("no lab")

// Open reads the lab in a folder.
func Open(dir string) (*Lab, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(abs, "lab.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &problem.Error{Kind: problem.NotFound, Msg: "there is no lab in " + abs + "; patch-lab up --dir " + abs + " makes one", Err: errNoLab}
	}
	if err != nil {
		return nil, problem.Errorf(problem.Invalid, "cannot read the lab in %s: %w", abs, err)
	}
	var l Lab
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, problem.Errorf(problem.Invalid, "cannot read %s/lab.json: %w", abs, err)
	}
	if l.Format != format {
		return nil, problem.Errorf(problem.Invalid, "the lab in %s was made by another version (format %d, this is %d); take it down with that one", abs, l.Format, format)
	}
	l.Dir = abs // the folder may have been moved since
	return &l, nil
}

// save writes lab.json.
func (l *Lab) save() error {
	l.Format = format
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(l.file(), append(text, '\n'), 0o644)
}
