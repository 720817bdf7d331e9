package buildtool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/starpatch/starpatch/problem"
)

// signer is the program that adds file signatures to RPMs, called with -d and a folder of copies.
const signer = "sign-rpms"

// signRPMs lets command, else the site's sign-rpms if there is one, sign copies of the RPMs and returns the signed set
// with what removes the copies. Without a program the set stays as it is, and standard error says so.
func signRPMs(ctx context.Context, env Env, command string, set *rpmSet) (*rpmSet, func() error, error) {
	nothing := func() error { return nil }
	words := []string{command}
	if command == "" {
		path, err := exec.LookPath(signer)
		if err != nil {
			_, err := fmt.Fprintf(env.Stderr, "%s is not on PATH: the RPMs go in as they are\n", signer)
			return set, nothing, err
		}
		words = []string{path}
	} else if _, err := exec.LookPath(command); err != nil {
		words = strings.Fields(command) // a program with arguments
	}
	if len(words) == 0 {
		return nil, nil, problem.Errorf(problem.Invalid, "--sign-rpms names no command")
	}
	dir, err := os.MkdirTemp("", "patch_build-")
	if err != nil {
		return nil, nil, err
	}
	cleanup := func() error { return os.RemoveAll(dir) }
	signed, err := signCopies(ctx, env, words, dir, set)
	if err != nil {
		return nil, nil, errors.Join(err, cleanup())
	}
	return signed, cleanup, nil
}

func signCopies(ctx context.Context, env Env, words []string, dir string, set *rpmSet) (*rpmSet, error) {
	for _, f := range set.files {
		if err := copyFile(ctx, filepath.Join(dir, f.name), f.path); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], "-d", dir)...)
	cmd.Stdout, cmd.Stderr = env.Stderr, env.Stderr
	if err := cmd.Run(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok || exit.ExitCode() < 0 {
			return nil, fmt.Errorf("cannot sign the RPMs: %w", err)
		}
		return nil, exitCode{exit.ExitCode(), problem.Errorf(problem.Unavailable,
			"Failed to to add file signatures to RPMs. Call to sign-rpms process returned non-zero exit status %d", exit.ExitCode())}
	}
	signed := &rpmSet{}
	for _, f := range set.files {
		if _, err := signed.add(filepath.Join(dir, f.name)); err != nil {
			return nil, err
		}
	}
	return signed, nil
}

func copyFile(ctx context.Context, to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(ctxWriter{ctx, out}, in)
	return errors.Join(err, out.Close())
}
