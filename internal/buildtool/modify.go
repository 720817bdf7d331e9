package buildtool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

const modifyUsage = `Usage: modify_patch --obsolete | --released | --development --file <patch> [ --key <file> ] [ --trust <dir> ]
	--obsolete         Set the status to OBS
	--released         Set the status to REL
	--development      Set the status to DEV
	--file <patch>     Patch file; it is replaced
	--key <file>       Signing key (default: $MY_REPO/` + defaultKey + `)
	--trust <dir>      Folder with formal/ and dev/ to verify the patch with (default: only what the signing key signed);
	                   the signing key must be of the same class as the one that signed the patch
	--help             This text
`

// Modify is modify_patch. It returns the exit code.
func Modify(ctx context.Context, env Env) int {
	return tool{usage: modifyUsage, failed: "Failed to modify patch!", run: runModify}.main(ctx, env)
}

func runModify(ctx context.Context, env Env) (err error) {
	f := newFlags()
	var file, key, trust string
	var obsolete, released, development switched
	onOff(f, &obsolete, "obsolete", "")
	onOff(f, &released, "released", "")
	onOff(f, &development, "development", "")
	f.StringVar(&file, "file", "", "")
	f.StringVar(&key, "key", "", "")
	f.StringVar(&trust, "trust", "", "")
	if err := parse(f, env.Args); err != nil {
		return err
	}
	var status []patch.Status
	for _, c := range []struct {
		given  switched
		status patch.Status
	}{{obsolete, patch.ObsoleteOBS}, {released, patch.Released}, {development, patch.Development}} {
		if c.given {
			status = append(status, c.status)
		}
	}
	if len(status) != 1 || file == "" || f.NArg() > 0 {
		return usagef("modify_patch needs exactly one of --obsolete, --released and --development, and --file; it takes no other words")
	}
	if err := modify(ctx, env, file, key, trust, status[0]); err != nil {
		return err
	}
	_, err = fmt.Fprintf(env.Stdout, "Patch '%s' has been modified to status '%s'\n", file, status[0])
	return err
}

func modify(ctx context.Context, env Env, file, key, trust string, status patch.Status) (err error) {
	private, keyPath, err := signingKey(key, env)
	if err != nil {
		return err
	}
	public, err := patchfile.NewKey(private.Public())
	if err != nil {
		return err
	}
	t := trustOf(public, classOf(keyPath))
	if trust != "" {
		if t, err = env.LoadTrust(trust); err != nil {
			return err
		}
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	p, done, err := openPatch(ctx, file, patchfile.Options{Trust: t, KeepTars: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	// The class says who vouches for a patch; setting its status must not turn a development patch into a formal one.
	if class := t.Has(public.ID()); class != p.Signer.Class {
		is := "not trusted"
		if class != "" {
			is = "a " + class + " key"
		}
		return problem.Errorf(problem.Forbidden, "cannot sign %s with %s: a %s key signed it, and this one is %s; sign with a %[3]s key", file, keyPath, p.Signer.Class, is)
	}
	m := p.Metadata
	m.Status = patch.Some(string(status))
	when, err := sourceDate(env)
	if err != nil {
		return err
	}
	out, err := durable.Create(file, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Abort()) }()
	if err := p.Rewrite(ctxWriter{ctx, out}, m, private, patchfile.BuildOptions{Time: when, Workers: workers(), Fanout: fanout.New}); err != nil {
		return err
	}
	return out.Commit()
}
