package swpatch

import (
	"context"

	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/problem"
)

func apply(ctx context.Context, s *session, o cli.Options) error {
	opts := client.ApplyOptions{SkipSemantic: o.Flags["--skip-semantic"]}
	release, named := o.Values["--release"]
	switch {
	case o.Flags["--all"] && len(o.Words) > 0:
		return problem.Errorf(problem.Invalid, "--all cannot be combined with patch IDs")
	case named && !o.Flags["--all"]:
		return problem.Errorf(problem.Invalid, "Use of --release option requires --all")
	case !o.Flags["--all"] && len(o.Words) == 0:
		return usagef("apply: expected patch IDs, or --all")
	case !o.Flags["--all"]:
		return s.change(s.ctl.Apply(ctx, o.Words, opts))
	case !named:
		st, err := s.ctl.Status(ctx)
		if problem.KindOf(err) == problem.NotFound {
			return problem.Errorf(problem.NotSupported, "cannot apply --all without --release here: the compatibility port does not tell the running release; add --release R, or use the controller's socket")
		}
		if err != nil {
			return err
		}
		opts.Release = st.Release
	case release != "all":
		opts.Release = release
	}
	return s.change(s.ctl.Apply(ctx, []string{client.All}, opts))
}

func remove(ctx context.Context, s *session, o cli.Options) error {
	return s.change(s.ctl.Remove(ctx, o.Words, client.RemoveOptions{
		RemoveUnremovable: o.Flags["--removeunremovable"],
		SkipAppCheck:      o.Flags["--skipappcheck"],
		SkipSemantic:      o.Flags["--skip-semantic"],
	}))
}

func deletePatches(ctx context.Context, s *session, o cli.Options) error {
	return s.change(s.ctl.Delete(ctx, o.Words))
}

func dropHost(ctx context.Context, s *session, o cli.Options) error {
	return s.change(s.ctl.DropHost(ctx, o.Words[0]))
}

func hostInstallAsync(ctx context.Context, s *session, o cli.Options) error {
	return s.change(s.ctl.HostInstallAsync(ctx, o.Words[0], o.Flags["--force"]))
}

func whatRequires(ctx context.Context, s *session, o cli.Options) error {
	return s.change(s.ctl.WhatRequires(ctx, o.Words...))
}
