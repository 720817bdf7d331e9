package swpatch

import (
	"context"
	"slices"
	"strings"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/cli"
)

func queryHosts(ctx context.Context, s *session, _ cli.Options) error {
	q, err := s.ctl.QueryHosts(ctx)
	if err != nil {
		return err
	}
	return s.result(q.Error, func() string { return hostTable(q.Hosts) })
}

// hostTable lists hosts by name.
func hostTable(hosts []api.HostInfo) string {
	hosts = slices.SortedStableFunc(slices.Values(hosts), func(a, b api.HostInfo) int { return strings.Compare(a.Hostname, b.Hostname) })
	var rows [][]string
	for _, h := range hosts {
		rows = append(rows, []string{h.Hostname, h.IP, patchCurrent(h), yesNo(h.RequiresReboot), h.Release, h.State})
	}
	return cli.Table([]cli.Column{
		{Header: "Hostname", Left: true}, {Header: "IP Address", Left: true},
		{Header: "Patch Current"}, {Header: "Reboot Required"}, {Header: "Release"}, {Header: "State"},
	}, rows)
}

// patchCurrent is the one word for what three flags say.
func patchCurrent(h api.HostInfo) string {
	switch {
	case h.PatchFailed:
		return "Failed"
	case h.InterimState:
		return "Pending"
	}
	return yesNo(h.PatchCurrent)
}

func yesNo(b bool) string {
	if b {
		return "Yes"
	}
	return "No"
}
