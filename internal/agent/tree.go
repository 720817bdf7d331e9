package agent

import (
	"bufio"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/problem"
)

// The files below a host's root by which the agent, package scriptlets, patch scripts and maintenance tell each other
// things. Names and meanings are the original's; all but the last are in the run folder and vanish with a reboot.
// Source: starlingx/update cgcs-patch (2019).
const (
	flagLocked     = ".node_locked"         // maintenance: the host carries no workload
	flagInstalling = "patch_installing"     // agent, its pid: an install is in progress
	flagFailed     = "patch_install_failed" // agent: the last install failed
	flagPatched    = "node_is_patched"      // agent: software changed and is not fully activated
	flagReboot     = "node_is_patched_rr"   // scriptlets: only a reboot activates it

	scriptDir = "run/patching/patch-scripts" // scriptlets put in-service scripts there
	markDir   = "run/patching/patch-flags"   // scripts leave marks there for each other
	scriptLog = "var/log/patching-insvc.log"

	rpmDir  = "var/lib/rpm"
	rpmLock = ".rpm.lock" // held by whoever changes packages, closed at the end of the transaction
)

//go:embed shell/run-patch-scripts
var runPatchScripts []byte

//go:embed shell/patch-functions
var patchFunctions []byte

// shellMark is a line of every shell file of ours; a file without it belongs to somebody else and stays.
const shellMark = "# Installed by sw-patch-agent; changes are overwritten."

// tree is the root folder of the host.
type tree struct {
	root string
	run  string // where the flag files are, below root
}

// openTree finds the run folder: var/run is a link to run on all but the oldest systems. The link is never followed,
// because in a root that is not "/" an absolute one would lead out of it.
func openTree(root string) (tree, error) {
	if !filepath.IsAbs(root) {
		return tree{}, problem.Errorf(problem.Invalid, "root %q is not an absolute path", root)
	}
	if fi, err := os.Stat(root); err != nil || !fi.IsDir() {
		return tree{}, problem.Errorf(problem.Invalid, "root %s is not a folder", root)
	}
	t := tree{root: root, run: "run"}
	if fi, err := os.Lstat(t.path("var/run")); err == nil && fi.IsDir() {
		t.run = "var/run"
	}
	return t, os.MkdirAll(t.path(t.run), 0o755)
}

func (t tree) path(name string) string { return filepath.Join(t.root, name) }
func (t tree) flag(name string) string { return filepath.Join(t.root, t.run, name) }

func (t tree) has(flag string) (bool, error) {
	_, err := os.Lstat(t.flag(flag))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// set makes a flag file with a text, or removes it. Flags do not survive a reboot, so nothing is synced.
func (t tree) set(flag string, on bool, text string) error {
	if on {
		return os.WriteFile(t.flag(flag), []byte(text), 0o644)
	}
	if err := os.Remove(t.flag(flag)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// emptyScriptDirs makes the two in-service folders anew, readable for root only: what lies there is run as root.
func (t tree) emptyScriptDirs() error {
	for _, d := range []string{scriptDir, markDir} {
		if err := os.RemoveAll(t.path(d)); err != nil {
			return err
		}
	}
	return t.makeScriptDirs()
}

func (t tree) makeScriptDirs() error {
	for _, d := range []string{filepath.Dir(scriptDir), scriptDir, markDir} {
		if err := os.MkdirAll(t.path(d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (t tree) removeScriptDirs() error {
	return errors.Join(os.RemoveAll(t.path(scriptDir)), os.RemoveAll(t.path(markDir)))
}

// writeShellFiles puts what in-service scripts and operators call where the original has it.
func (t tree) writeShellFiles() error {
	for _, f := range []struct {
		name string
		text []byte
		mode fs.FileMode
	}{{"usr/sbin/run-patch-scripts", runPatchScripts, 0o755}, {"etc/patching/patch-functions", patchFunctions, 0o644}} {
		path := t.path(f.name)
		have, err := os.ReadFile(path)
		if err == nil && (string(have) == string(f.text) || !strings.Contains(string(have), shellMark)) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := durable.WriteFile(path, f.text, f.mode); err != nil {
			return err
		}
	}
	return nil
}

// bootID reads the id of the present boot from a file of one line.
func bootID(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", problem.Errorf(problem.Invalid, "cannot read the boot id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", problem.Errorf(problem.Invalid, "cannot read the boot id: %s is empty", path)
	}
	return id, nil
}

// setting returns a key of a file of key=value lines below root.
func (t tree) setting(file, key string) (string, error) {
	f, err := os.Open(t.path(file))
	if err != nil {
		return "", problem.Errorf(problem.Invalid, "cannot find out %s: %w", key, err)
	}
	defer f.Close() // only read from
	s := bufio.NewScanner(f)
	for s.Scan() {
		if k, v, ok := strings.Cut(strings.TrimSpace(s.Text()), "="); ok && strings.TrimSpace(k) == key {
			v = strings.TrimSpace(v)
			if u, err := strconv.Unquote(v); err == nil {
				v = u
			}
			return strings.Trim(v, "'"), nil
		}
	}
	if err := s.Err(); err != nil {
		return "", fmt.Errorf("cannot read %s: %w", t.path(file), err)
	}
	return "", problem.Errorf(problem.Invalid, "%s has no %s", t.path(file), key)
}

// platform finds out what kind of host this is: what is given, else what the platform's own files say.
func (t tree) platform(personality, release string) (host.Personality, string, error) {
	if release == "" {
		v, err := t.setting("etc/build.info", "SW_VERSION")
		if err != nil {
			return "", "", problem.Errorf(problem.Invalid, "the release of this host is not known: %w; set release in the configuration", err)
		}
		release = v
	}
	if personality != "" {
		p, err := host.ParsePersonality(personality)
		return p, release, err
	}
	v, err := t.setting("etc/platform/platform.conf", "subfunction")
	if err != nil {
		return "", "", problem.Errorf(problem.Invalid, "the personality of this host is not known: %w; set personality in the configuration", err)
	}
	p, err := host.ParseSubfunctions(v)
	return p, release, err
}
