package swpatch

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
	"github.com/starpatch/starpatch/problem"
)

func queryDependencies(ctx context.Context, s *session, o cli.Options) error {
	r, err := s.ctl.QueryDependencies(ctx, o.Flags["--recursive"], o.Words...)
	if err != nil {
		return err
	}
	if s.debug {
		if err := s.printReply(); err != nil {
			return err
		}
	} else {
		for _, id := range slices.Sorted(slices.Values(r.Patches)) {
			s.out.Line("%s", id)
		}
	}
	if r.Error != "" {
		// Not in the result, which scripts read line by line.
		return problem.Errorf(problem.NotFound, "%s", strings.TrimSpace(r.Error))
	}
	return nil
}

func isApplied(ctx context.Context, s *session, o cli.Options) error {
	return s.answer(s.ctl.IsApplied(ctx, o.Words...))
}

func isAvailable(ctx context.Context, s *session, o cli.Options) error {
	return s.answer(s.ctl.IsAvailable(ctx, o.Words...))
}

// answer prints yes or no as Python spells it; no is exit code 1.
func (s *session) answer(yes bool, err error) error {
	switch {
	case err != nil:
		return err
	case yes:
		s.out.Line("True")
		return nil
	}
	s.out.Line("False")
	return errSaid
}

// completion prints what a shell may offer after a subcommand.
func completion(ctx context.Context, s *session, o cli.Options) error {
	switch what := o.Words[0]; what {
	case "patches":
		q, err := s.ctl.Query(ctx, "all", "")
		if err != nil {
			return err
		}
		s.out.Line("%s", strings.Join(slices.Sorted(maps.Keys(q.Patches)), " "))
	case "hosts":
		q, err := s.ctl.QueryHosts(ctx)
		if err != nil {
			return err
		}
		for _, h := range slices.SortedFunc(slices.Values(q.Hosts), func(a, b api.HostInfo) int { return strings.Compare(a.Hostname, b.Hostname) }) {
			s.out.Line("%s", h.Hostname)
		}
	default:
		return usagef("completion: %q cannot be listed; expected patches or hosts", what)
	}
	return nil
}

// operationLog prints the kept output of an installation.
func operationLog(ctx context.Context, s *session, o cli.Options) error {
	r, err := s.ctl.OperationLog(ctx, o.Words[0])
	if s.onCompatPort(err) {
		return problem.Errorf(problem.NotSupported, "cannot show the output of an installation over the compatibility port: unset STARPATCH_URL to use the controller's socket")
	}
	if err != nil {
		return err
	}
	s.out.Text(r.Output)
	if r.Output != "" && !strings.HasSuffix(r.Output, "\n") {
		s.out.Line("")
	}
	return nil
}
