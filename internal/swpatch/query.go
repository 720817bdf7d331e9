package swpatch

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
)

// notApplicable is the patch state while no host is known.
const notApplicable = "n/a"

func query(ctx context.Context, s *session, o cli.Options) error {
	filter := "all"
	if len(o.Words) == 1 {
		filter = o.Words[0]
	}
	if known := []string{"all", "applied", "available", "committed"}; !slices.Contains(known, filter) {
		return usagef("query: %q is not a filter; expected one of %s", filter, strings.Join(known, ", "))
	}
	q, err := s.ctl.Query(ctx, filter, o.Values["--release"])
	if err != nil {
		return err
	}
	return s.result(q.Error, func() string { return patchTable(q.Patches) + "\n" })
}

// result prints what was asked for, or the refusal that the answer holds instead.
func (s *session) result(refusal string, text func() string) error {
	switch {
	case s.debug:
		if err := s.printReply(); err != nil {
			return err
		}
	case refusal == "":
		s.out.Text(text())
	default:
		s.refused(refusal)
	}
	if refusal != "" {
		return errSaid
	}
	return nil
}

// patchTable lists patches by id. The repo state has a column when a patch state says nothing.
func patchTable(patches map[string]api.PatchInfo) string {
	columns := []cli.Column{{Header: "Patch ID", Left: true}, {Header: "RR"}, {Header: "Release"}, {Header: "Patch State"}}
	withRepo := false
	for _, p := range patches {
		withRepo = withRepo || p.PatchState == notApplicable
	}
	if withRepo {
		columns = slices.Insert(columns, 3, cli.Column{Header: "Repo State"})
	}
	var rows [][]string
	for _, id := range slices.Sorted(maps.Keys(patches)) {
		p := patches[id]
		rr := p.RebootRequired
		if rr == "" {
			rr = "Y"
		}
		row := []string{id, rr, p.Release, p.PatchState}
		if withRepo {
			row = slices.Insert(row, 3, p.RepoState)
		}
		rows = append(rows, row)
	}
	return cli.Table(columns, rows)
}
