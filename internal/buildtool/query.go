package buildtool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

const queryUsage = `Usage: query_patch --file <patch> [ --field <field> ] [ --trust <dir> | --key <file> ]
	--file <patch>     Patch file
	--field <field>    Only this field: one of those shown without it, or contents or requires
	--trust <dir>      Folder with formal/ and dev/, each with public keys or certificates in PEM form
	--key <file>       One key to trust instead: public, certificate or private; a development key unless its file is named
	                   formal... (default: $MY_REPO/` + defaultKey + `)
	--help             This text
`

// Query is query_patch. It returns the exit code.
func Query(ctx context.Context, env Env) int {
	return tool{usage: queryUsage, failed: "Failed to query patch!", run: runQuery}.main(ctx, env)
}

func runQuery(ctx context.Context, env Env) (err error) {
	f := newFlags()
	var file, field, trust, key string
	f.StringVar(&file, "file", "", "")
	f.StringVar(&field, "field", "", "")
	f.StringVar(&trust, "trust", "", "")
	f.StringVar(&key, "key", "", "")
	if err := parse(f, env.Args); err != nil {
		return err
	}
	if file == "" || f.NArg() > 0 {
		return usagef("query_patch needs --file and takes no other words")
	}
	t, err := readTrust(env, trust, key)
	if err != nil {
		return err
	}
	p, done, err := openPatch(ctx, file, patchfile.Options{Trust: t})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	lines := fields(p)
	if field != "" {
		lines = append(lines, fieldLine{"contents", pythonList(p.Metadata.Contents)}, fieldLine{"requires", pythonList(p.Metadata.Requires)})
		i := slices.IndexFunc(lines, func(l fieldLine) bool { return l.name == field })
		if i < 0 {
			var known []string
			for _, l := range lines {
				known = append(known, l.name)
			}
			return problem.Errorf(problem.Invalid, "%s has no field %q; it has %s", file, field, strings.Join(known, ", "))
		}
		lines = lines[i : i+1]
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(env.Stdout, "%s: '%s'\n", l.name, visible(l.value)); err != nil {
			return err
		}
	}
	return nil
}

type fieldLine struct{ name, value string }

// fields are the lines that are shown, in the original's order. Elements that the metadata does not have are left out;
// reboot_required is shown as it is understood.
func fields(p *patchfile.File) []fieldLine {
	m := p.Metadata
	reboot := "Y"
	if m.InService() {
		reboot = "N"
	}
	out := []fieldLine{{"id", string(m.ID)}, {"sw_version", m.Release}}
	text := func(name string, t patch.Text) {
		if t.Present {
			out = append(out, fieldLine{name, t.Value})
		}
	}
	text("status", m.Status)
	out = append(out, fieldLine{"cert", p.Signer.Class}, fieldLine{"reboot_required", reboot})
	text("unremovable", m.Unremovable)
	text("summary", m.Summary)
	text("description", m.Description)
	text("install_instructions", m.InstallInstructions)
	text("warnings", m.Warnings)
	text("apply_active_release_only", m.ApplyActiveReleaseOnly)
	return out
}

// pythonList writes names as the original does, which prints a list of its own language.
func pythonList[S ~string](names []S) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = "'" + string(n) + "'"
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// readTrust reads the trust folder or the one key; with neither, the key of the build tree.
func readTrust(env Env, dir, key string) (patchfile.Trust, error) {
	if dir != "" && key != "" {
		return patchfile.Trust{}, usagef("--trust and --key exclude each other: which keys count?")
	}
	if dir != "" {
		return env.LoadTrust(dir)
	}
	if key == "" {
		if env.Getenv("MY_REPO") == "" {
			return patchfile.Trust{}, problem.Errorf(problem.Invalid, "no key to verify with: give --trust DIR or --key FILE, or set MY_REPO to a build tree that has %s", defaultKey)
		}
		private, path, err := signingKey("", env)
		if err != nil {
			return patchfile.Trust{}, fmt.Errorf("no key to verify with: %w; give --trust DIR or --key FILE", err)
		}
		k, err := patchfile.NewKey(private.Public())
		return trustOf(k, classOf(path)), err
	}
	text, err := readSmall(key)
	if err != nil {
		return patchfile.Trust{}, fmt.Errorf("cannot read the key: %w", err)
	}
	k, err := patchfile.ParseKey(text)
	if private, perr := patchfile.ParseSigningKey(text); perr == nil {
		k, err = patchfile.NewKey(private.Public())
	}
	if err != nil {
		return patchfile.Trust{}, problem.Errorf(problem.Invalid, "cannot read the key %s: %v", key, err)
	}
	return trustOf(k, classOf(key)), nil
}

// openPatch opens and verifies a patch file. done closes it and removes what was spooled.
func openPatch(ctx context.Context, path string, o patchfile.Options) (p *patchfile.File, done func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s, err := newSpool()
	if err != nil {
		return nil, nil, err
	}
	o.Fanout = fanout.New
	if p, err = patchfile.Open(ctxReader{ctx, f}, s, o); err != nil {
		return nil, nil, err
	}
	return p, func() error { return errors.Join(p.Close(), s.Discard()) }, nil
}
