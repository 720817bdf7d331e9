package buildtool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

const buildUsage = `Usage: patch_build [ <option> ] ... <rpm> ...
Options come before the RPMs. RPMs without an option update packages that hosts have already.
	--id <id>                                Patch ID; the file is <id>.patch
	--release <version>                      Platform release (default: $PLATFORM_RELEASE)
	--status <status>                        DEV, REL or OBS (default: DEV)
	--unremovable                            The patch cannot be removed
	--reboot-required <Y|N>                  Hosts must reboot (default: Y)
	--summary <text>                         Summary, one line
	--desc <text>                            Description
	--warn <text>                            Warnings
	--inst <text>                            Installation instructions
	--req <id>                               Patch that this one requires; may be repeated
	--controller <rpm>                       New package for controllers; may be repeated, as all of these
	--worker <rpm>                           New package for workers
	--worker-lowlatency <rpm>                New package for lowlatency workers
	--storage <rpm>                          New package for storage hosts
	--controller-worker <rpm>                New package for combined hosts
	--controller-worker-lowlatency <rpm>     New package for lowlatency combined hosts
	--all-nodes <rpm>                        New package for hosts of all types
	--pre-apply <script>                     Semantic check before the patch is applied
	--pre-remove <script>                    Semantic check before the patch is removed
	--apply-active-release-only              Apply only while its release is the running one
	--key <file>                             Signing key (default: $MY_REPO/` + defaultKey + `)
	--sign-rpms <command>                    Sign the RPMs' files by <command> -d <dir> (default: sign-rpms, if on PATH)
	--output-dir <dir>                       Where the file goes (default: here)
	--compress-level <n>                     1 fastest to 9 smallest, 0 not at all (default: 1, as RPMs are compressed)
	--help                                   This text
With SOURCE_DATE_EPOCH set, equal inputs give equal files but for the salt of the signature.
`

// Build is patch_build. It returns the exit code.
func Build(ctx context.Context, env Env) int {
	return tool{usage: buildUsage, run: runBuild}.main(ctx, env)
}

// buildOptions are the options of patch_build.
type buildOptions struct {
	id, release, status, reboot string
	summary, desc, warn, inst   string
	requires                    []string
	unremovable, activeOnly     switched
	personalities               map[host.Personality]*[]string // paths
	allNodes                    []string
	preApply, preRemove         string
	key, signRPMs, outputDir    string
	compressLevel               string
	level                       int      // compressLevel, checked
	plain                       []string // RPM paths without a personality
	fs                          *pflag.FlagSet
}

func parseBuild(args []string) (*buildOptions, error) {
	o := &buildOptions{personalities: map[host.Personality]*[]string{}, fs: newFlags()}
	f := o.fs
	f.StringVar(&o.id, "id", "", "")
	f.StringVar(&o.release, "release", "", "")
	f.StringVar(&o.status, "status", string(patch.Development), "")
	onOff(f, &o.unremovable, "unremovable", "")
	f.StringVar(&o.reboot, "reboot-required", "", "")
	f.StringVar(&o.summary, "summary", "", "")
	f.StringVar(&o.desc, "desc", "", "")
	f.StringVar(&o.warn, "warn", "", "")
	f.StringVar(&o.inst, "inst", "", "")
	f.StringArrayVar(&o.requires, "req", nil, "")
	for _, hp := range host.Personalities() {
		o.personalities[hp] = f.StringArray(string(hp), nil, "")
	}
	f.StringArrayVar(&o.allNodes, "all-nodes", nil, "")
	f.StringVar(&o.preApply, "pre-apply", "", "")
	f.StringVar(&o.preRemove, "pre-remove", "", "")
	onOff(f, &o.activeOnly, "apply-active-release-only", "")
	f.StringVar(&o.key, "key", "", "")
	f.StringVar(&o.signRPMs, "sign-rpms", "", "")
	f.StringVar(&o.outputDir, "output-dir", ".", "")
	f.StringVar(&o.compressLevel, "compress-level", strconv.Itoa(patchfile.Fastest), "")
	if err := parse(f, args); err != nil {
		return nil, err
	}
	o.plain = f.Args()
	return o, nil
}

// metadata checks the options that need no file, in the original's order and words.
func (o *buildOptions) metadata(env Env) (patch.Metadata, error) {
	m := patch.Metadata{
		Release: o.release, Summary: patch.Some(o.summary), Description: patch.Some(o.desc), Warnings: patch.Some(o.warn),
		InstallInstructions: patch.Some(o.inst), RebootRequired: patch.Some(o.reboot), Unremovable: patch.Some(yes(o.unremovable)),
		ApplyActiveReleaseOnly: patch.Some(yes(o.activeOnly)), Personalities: map[host.Personality][]string{},
	}
	if o.fs.Changed("reboot-required") && o.reboot != "Y" && o.reboot != "N" {
		return m, problem.Errorf(problem.Invalid, "The --reboot-required option requires either Y or N as argument.")
	}
	status, err := patch.ParseStatus(o.status)
	if err != nil {
		return m, problem.Errorf(problem.Invalid, "cannot take --status: %v", err)
	}
	m.Status = patch.Some(string(status))
	if o.id == "" {
		return m, problem.Errorf(problem.Invalid, "The --id argument is mandatory.")
	}
	if m.ID, err = patch.ParseID(o.id); err != nil {
		return m, problem.Errorf(problem.Invalid, "cannot take --id: %v", err)
	}
	for _, r := range o.requires {
		id, err := patch.ParseID(r)
		if err != nil {
			return m, problem.Errorf(problem.Invalid, "cannot take --req: %v", err)
		}
		m.Requires = append(m.Requires, id)
	}
	if o.level, err = strconv.Atoi(o.compressLevel); err != nil || o.level < 0 || o.level > patchfile.Smallest {
		return m, problem.Errorf(problem.Invalid, "cannot take --compress-level %s; expected 0 to %d", o.compressLevel, patchfile.Smallest)
	}
	if !o.hasRPM() {
		return m, problem.Errorf(problem.Invalid, "Cannot generate empty patch")
	}
	if m.Release == "" {
		m.Release = env.Getenv("PLATFORM_RELEASE")
	}
	if m.Release == "" {
		return m, problem.Errorf(problem.Invalid, "The release version must be specified in the sw_version field")
	}
	if _, err := patch.ParseRelease(m.Release); err != nil {
		return m, problem.Errorf(problem.Invalid, "cannot take --release: %v", err)
	}
	return m, nil
}

func yes(on switched) string {
	if on {
		return "Y"
	}
	return ""
}

func (o *buildOptions) hasRPM() bool {
	for _, paths := range o.personalities {
		if len(*paths) > 0 {
			return true
		}
	}
	return len(o.plain)+len(o.allNodes) > 0
}

// rpmSet is the RPMs of a patch by file name.
type rpmSet struct {
	files []rpmFile
	index map[string]int
}

type rpmFile struct {
	name string // base name
	path string
	info os.FileInfo
	pkg  rpm.Header
}

// add takes the RPM at path, once however often it is named, and returns its package name.
func (s *rpmSet) add(path string) (string, error) {
	name := filepath.Base(path)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(path, "--"):
		return "", problem.Errorf(problem.Invalid, "cannot read the RPM %s: there is no such file; if it is meant as an option, give it before the first RPM", path)
	case err != nil:
		return "", fmt.Errorf("cannot read the RPM: %w", err)
	}
	if i, ok := s.index[name]; ok {
		if !os.SameFile(s.files[i].info, info) {
			return "", problem.Errorf(problem.Invalid, "%s and %s have the same name; a patch can hold one of them", s.files[i].path, path)
		}
		return s.files[i].pkg.Name, nil
	}
	if !info.Mode().IsRegular() {
		return "", problem.Errorf(problem.Invalid, "%s is not a regular file; expected an RPM", path)
	}
	h, err := readHeader(path)
	if err != nil {
		return "", err
	}
	if s.index == nil {
		s.index = map[string]int{}
	}
	s.index[name] = len(s.files)
	s.files = append(s.files, rpmFile{name: name, path: path, info: info, pkg: h})
	return h.Name, nil
}

func readHeader(path string) (rpm.Header, error) {
	f, err := os.Open(path)
	if err != nil {
		return rpm.Header{}, fmt.Errorf("cannot read the RPM: %w", err)
	}
	h, err := rpm.ReadHeader(f)
	if err != nil {
		err = problem.Errorf(problem.KindOf(err), "cannot take %s: %w", path, err)
	}
	return h, errors.Join(err, f.Close())
}

// collect reads the headers of all RPMs and fills in the personalities.
func (o *buildOptions) collect(m *patch.Metadata) (*rpmSet, error) {
	set := &rpmSet{}
	for _, path := range o.plain {
		if _, err := set.add(path); err != nil {
			return nil, err
		}
	}
	for _, hp := range host.Personalities() {
		for _, path := range append(append([]string(nil), *o.personalities[hp]...), o.allNodes...) {
			name, err := set.add(path)
			if err != nil {
				return nil, err
			}
			m.Personalities[hp] = append(m.Personalities[hp], name)
		}
	}
	return set, nil
}

func (s *rpmSet) inputs(ctx context.Context) []patchfile.Input {
	var out []patchfile.Input
	for _, f := range s.files {
		out = append(out, fileInput(ctx, f.name, f.path, f.info.Size()))
	}
	return out
}

func fileInput(ctx context.Context, name, path string, size int64) patchfile.Input {
	return patchfile.Input{Name: name, Size: size, Open: func() (io.ReadCloser, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{ctxReader{ctx, f}, f}, nil
	}}
}

// checks reads the semantic checks' sizes.
func (o *buildOptions) checks(ctx context.Context) (map[patch.Action]patchfile.Input, error) {
	out := map[patch.Action]patchfile.Input{}
	for action, path := range map[patch.Action]string{patch.PreApply: o.preApply, patch.PreRemove: o.preRemove} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read the %s check: %w", action, err)
		}
		if !info.Mode().IsRegular() {
			return nil, problem.Errorf(problem.Invalid, "%s is not a regular file; expected a script or program for %s", path, action)
		}
		out[action] = fileInput(ctx, string(action), path, info.Size())
	}
	return out, nil
}

func runBuild(ctx context.Context, env Env) (err error) {
	o, err := parseBuild(env.Args)
	if err != nil {
		return err
	}
	m, err := o.metadata(env)
	if err != nil {
		return err
	}
	when, err := sourceDate(env)
	if err != nil {
		return err
	}
	key, _, err := signingKey(o.key, env)
	if err != nil {
		return err
	}
	checks, err := o.checks(ctx)
	if err != nil {
		return err
	}
	set, err := o.collect(&m)
	if err != nil {
		return err
	}
	set, cleanup, err := signRPMs(ctx, env, o.signRPMs, set)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cleanup()) }()

	dir, err := filepath.Abs(o.outputDir)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, string(m.ID)+patchfile.Extension)
	out, err := durable.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Abort()) }()
	level := o.level
	if level == 0 {
		level = patchfile.Stored
	}
	src := patchfile.Source{Metadata: m, Packages: set.inputs(ctx), Checks: checks}
	if err := patchfile.Build(ctxWriter{ctx, out}, src, key, patchfile.BuildOptions{Level: level, Time: when, Workers: workers(), Fanout: fanout.New}); err != nil {
		return err
	}
	if err := out.Commit(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.Stdout, "Patch is %s\n", path)
	return err
}

// workers is how many blocks are compressed at a time: all processors, within the memory that the tool may use.
func workers() int { return min(runtime.GOMAXPROCS(0), 8) }

// sourceDate is the time that goes into the file: SOURCE_DATE_EPOCH, else now.
// Source: reproducible-builds.org, SOURCE_DATE_EPOCH specification.
func sourceDate(env Env) (time.Time, error) {
	s := env.Getenv("SOURCE_DATE_EPOCH")
	if s == "" {
		return env.Now(), nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return time.Time{}, problem.Errorf(problem.Invalid, "SOURCE_DATE_EPOCH is %q; expected seconds since 1970", s)
	}
	return time.Unix(int64(n), 0), nil
}
