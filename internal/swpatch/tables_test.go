package swpatch

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/api"
)

func TestPatchTable(t *testing.T) {
	for _, tt := range []struct {
		name    string
		patches map[string]api.PatchInfo
		want    string
	}{
		{"patch states", map[string]api.PatchInfo{
			"001": {RebootRequired: "N", Release: "19.09", RepoState: "Applied", PatchState: "Partial-Apply"},
		}, `Patch ID  RR  Release   Patch State |
========  ==  =======  =============|
001       N    19.09   Partial-Apply|
`},
		{"the repo state is shown while a patch state says nothing", map[string]api.PatchInfo{
			"001":                {RebootRequired: "N", Release: "19.09", RepoState: "Applied", PatchState: "n/a"},
			"LONG_PATCH_ID_0002": {Release: "19.09", RepoState: "Available", PatchState: "Available"},
		}, `     Patch ID       RR  Release  Repo State  Patch State|
==================  ==  =======  ==========  ===========|
001                 N    19.09    Applied        n/a    |
LONG_PATCH_ID_0002  Y    19.09   Available    Available |
`},
		{"no patches", nil, `Patch ID  RR  Release  Patch State|
========  ==  =======  ===========|
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checkLines(t, patchTable(tt.patches), tt.want)
		})
	}
}

// checkLines compares with lines whose ends are marked with |, so that blanks before them can be seen.
func checkLines(t *testing.T, got, want string) {
	t.Helper()
	if diff := cmp.Diff(strings.SplitAfter(want, "\n"), strings.SplitAfter(strings.ReplaceAll(got, "\n", "|\n"), "\n")); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHostTable(t *testing.T) {
	hosts := []api.HostInfo{
		{Hostname: "worker-12", IP: "fd00::1", PatchFailed: true, InterimState: true, PatchCurrent: true, Release: "19.09", State: "install-failed"},
		{Hostname: "controller-0", IP: "192.168.204.3", RequiresReboot: true, Release: "19.09", State: "install-rejected"},
		{Hostname: "compute-0", IP: "192.168.204.7", InterimState: true, PatchCurrent: true, Release: "19.09", State: "idle"},
	}
	checkLines(t, hostTable(hosts), `  Hostname     IP Address    Patch Current  Reboot Required  Release       State      |
============  =============  =============  ===============  =======  ================|
compute-0     192.168.204.7     Pending           No          19.09         idle      |
controller-0  192.168.204.3       No              Yes         19.09   install-rejected|
worker-12     fd00::1           Failed            No          19.09    install-failed |
`)
}

// The rows of the tutorial, whose header was typed by hand.
func TestHostTableOfTheTutorial(t *testing.T) {
	hosts := []api.HostInfo{
		{Hostname: "storage-0", IP: "192.178.204.12", PatchCurrent: true, Release: "19.09", State: "idle"},
		{Hostname: "compute-0", IP: "192.178.204.7", Release: "19.09", State: "idle"},
	}
	checkLines(t, hostTable(hosts), `Hostname     IP Address    Patch Current  Reboot Required  Release  State|
=========  ==============  =============  ===============  =======  =====|
compute-0  192.178.204.7        No              No          19.09   idle |
storage-0  192.178.204.12       Yes             No          19.09   idle |
`)
}

func TestDetails(t *testing.T) {
	s := &session{Env: Env{Width: 72}}
	for _, tt := range []struct {
		name     string
		patch    api.PatchInfo
		contents []string
		want     string
	}{
		{"what is empty is left out", api.PatchInfo{
			Release: "19.09", PatchState: "Applied", RepoState: "Applied", RebootRequired: "N", ApplyActiveReleaseOnly: new("Y"),
			Summary: new("Faster audit"), Description: new(""), Requires: []string{"DEMO_19.09_PATCH_0001"},
		}, []string{"audit-helper-1.0-1.tis.x86_64.rpm"}, `001:
    Release:        19.09
    Patch State:    Applied
    RR:             N
    Apply Active Release Only: Y
    Summary:        Faster audit
    Requires:
                    DEMO_19.09_PATCH_0001
    Contents:
                    audit-helper-1.0-1.tis.x86_64.rpm


`},
		{"everything", api.PatchInfo{
			Release: "19.09", PatchState: "n/a", RepoState: "Available", Status: new("REL"), Unremovable: new("Y"), RebootRequired: "Y",
			Summary:             new("Reworks the audit loop so that it takes less than a well-known second"),
			Description:         new("First line that is long enough to be wrapped at the right\n\nthird line"),
			InstallInstructions: new("Lock the host.\n  Then install, which takes some minutes on a slow machine."),
			Warnings:            new("Careful.\nVery."),
			Requires:            []string{"B", "A"},
		}, []string{"z-1-1.noarch.rpm", "a-1-1.noarch.rpm"}, `001:
    Release:        19.09
    Patch State:    n/a
    Repo State:     Available
    Status:         REL
    Unremovable:    Y
    RR:             Y
    Summary:        Reworks the audit loop so that it takes less than a
                    well-known second
    Description:    First line that is long enough to be wrapped at the
                    right

                    third line
    Install Instructions:
                    Lock the host.
                      Then install, which takes some minutes on a slow
                    machine.
    Warnings:       Careful.
                    Very.
    Requires:
                    A
                    B
    Contents:
                    a-1-1.noarch.rpm
                    z-1-1.noarch.rpm


`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(strings.SplitAfter(tt.want, "\n"), strings.SplitAfter(s.details("001", tt.patch, tt.contents), "\n")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestShowPrintsUnknownIDsAfterTheOthers(t *testing.T) {
	got := controller{"POST /v1/show/B/NOPE/A": reply(200, `{"metadata": {"B": {"sw_version": "19.09"}, "A": {"sw_version": "19.09"}}, "contents": {}, "error": "NOPE is unrecognized\n"}`)}.run(t, "show", "B", "NOPE", "A")
	check(t, got, result{1, "A:\n    Release:        19.09\n\n\nB:\n    Release:        19.09\n\n\nError:\nNOPE is unrecognized\n\n", ""})
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"-h"}, {"help"}, {"--help", "--debug"}} {
		got := controller{}.run(t, args...)
		if got.code != 0 || got.stderr != "" {
			t.Errorf("%v: got %+v", args, got)
		}
		golden(t, "help.txt", got.stdout)
	}
	for _, c := range commands() {
		got := controller{}.run(t, "help", c.name)
		if again := (controller{}.run(t, c.name, "--help")); got != again || got.code != 0 || !strings.HasPrefix(got.stdout, "usage: sw-patch [--debug] "+c.name) {
			t.Errorf("%s: got %+v and %+v", c.name, got, again)
		}
	}
}
