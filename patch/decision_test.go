package patch

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/problem"
)

// trustsAll is a situation in which 19.09 runs, one host is current and every signer counts.
func trustsAll() Situation {
	return Situation{Release: "19.09", Hosts: []host.Host{reported("controller-0")}, Trusts: func(Signer) bool { return true }}
}

// cluster is what most rows below start from. A and B are Available, B requires A; C is Applied and requires D, Applied;
// E is Committed and requires F, Committed; L requires a patch that nobody has; S carries semantic checks; U is
// unremovable and Applied, V unremovable and Committed; X is of another release and only for that one running.
func cluster(t testing.TB) Set {
	edit := func(id ID, state RepoState, edit func(*Patch)) Patch {
		p := one(t, id, strings.ToLower(string(id))+"-1-1.noarch")
		p.RepoState = state
		p.RebootRequired = Some("N")
		if state != RepoAvailable {
			p.Changed = 3
		}
		if edit != nil {
			edit(&p)
		}
		return p
	}
	needs := func(ids ...ID) func(*Patch) { return func(p *Patch) { p.Requires = ids } }
	return setOf(
		edit("A", RepoAvailable, nil),
		edit("B", RepoAvailable, needs("A")),
		edit("C", RepoApplied, needs("D")),
		edit("D", RepoApplied, nil),
		edit("E", RepoCommitted, needs("F")),
		edit("F", RepoCommitted, nil),
		edit("L", RepoAvailable, needs("LOST")),
		edit("S", RepoAvailable, func(p *Patch) {
			p.Semantics, p.Checks = []Action{PreApply, PreRemove}, map[Action]string{PreApply: "x", PreRemove: "y"}
		}),
		edit("U", RepoApplied, func(p *Patch) { p.Unremovable = Some("Y") }),
		edit("V", RepoCommitted, func(p *Patch) { p.Unremovable = Some("Y") }),
		edit("X", RepoAvailable, func(p *Patch) { p.Release, p.ApplyActiveReleaseOnly = "20.01", Some("Y") }),
	)
}

// reply writes a decision as one text: lines of the reply and what changes.
func reply(d Decision) string {
	var b strings.Builder
	for _, part := range []struct {
		name  string
		lines []string
	}{{"info", d.Info}, {"warning", d.Warning}, {"error", d.Error}} {
		for _, l := range part.lines {
			fmt.Fprintf(&b, "%s: %s\n", part.name, l)
		}
	}
	for _, c := range d.Changes {
		fmt.Fprintf(&b, "%s %s: %s to %s\n", c.Release, c.ID, c.From, c.To)
	}
	return b.String()
}

func TestDecideApply(t *testing.T) {
	for _, tc := range []struct {
		name string
		req  ApplyRequest
		want string
	}{
		{"takes the IDs once, replies in their order and applies what is required first", ApplyRequest{IDs: []string{"B", "A", "B"}},
			"info: A is now in the repo\ninfo: B is now in the repo\n19.09 A: Available to Applied\n19.09 B: Available to Applied\n"},
		{"nothing asked, nothing done", ApplyRequest{}, ""},
		{"what is there already is only said", ApplyRequest{IDs: []string{"C", "E"}},
			"info: C is already in the repo\ninfo: E is already in the repo\n"},
		{"a requirement that is not applied", ApplyRequest{IDs: []string{"B"}}, "error: A is required by: B\n"},
		{"a requirement that nobody has", ApplyRequest{IDs: []string{"L", "A"}}, "error: LOST is required by: L\n"},
		{"one unknown ID refuses all", ApplyRequest{IDs: []string{"NOPE", "A", "../x"}},
			"error: Patch ../x does not exist\nerror: Patch NOPE does not exist\n"},
		{"only while its release runs", ApplyRequest{IDs: []string{"X", "A"}}, "error: X cannot be applied in an upgrade\n"},
		{"a semantic check is refused, not skipped", ApplyRequest{IDs: []string{"S", "A"}},
			"error: cannot apply S: it carries a semantic check, which this version cannot run yet\n"},
		{"unless the operator takes its place", ApplyRequest{IDs: []string{"S"}, SkipSemantic: true},
			"info: S is now in the repo\n19.09 S: Available to Applied\n"},
		{"--all beside IDs", ApplyRequest{IDs: []string{"A", "--all"}}, "error: --all cannot be combined with patch IDs\n"},
		{"--all of every release judges all", ApplyRequest{IDs: []string{"--all"}}, "error: X cannot be applied in an upgrade\n"},
		{"--all of one release", ApplyRequest{All: true, Release: "19.09", SkipSemantic: true}, "error: LOST is required by: L\n"},
		{"--all of a release without patches", ApplyRequest{All: true, Release: "18.03"}, "info: There are no available patches to be applied.\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := cluster(t)
			got, err := DecideApply(set, tc.req, trustsAll())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(reply(got), tc.want); d != "" {
				t.Errorf("decision (-got +want): %s", d)
			}
			if d := cmp.Diff(set, cluster(t)); d != "" {
				t.Errorf("the decision changed the set: %s", d)
			}
		})
	}
}

func TestApplyAsksTheTrustStoreAgain(t *testing.T) {
	set := cluster(t)
	a := set["A"]
	a.Signer = Signer{Class: "dev", Key: strings.Repeat("ab", 32)}
	set["A"] = a
	now := trustsAll()
	now.Trusts = func(s Signer) bool { return s.Class == "formal" }
	want := "error: cannot apply A: its signer, dev key abababababababab, is not trusted any more; trust the key again, or delete the patch and upload it signed by a trusted key\n"
	got, err := DecideApply(set, ApplyRequest{IDs: []string{"A"}}, now)
	if err != nil || reply(got) != want {
		t.Errorf("got %q, %v; want %q", reply(got), err, want)
	}
	now.Trusts = nil
	if got, err := DecideApply(set, ApplyRequest{IDs: []string{"A"}}, now); err != nil || !got.Refused() {
		t.Errorf("with no trust at all: got %q, %v", reply(got), err)
	}
	if got, err := DecideApply(set, ApplyRequest{IDs: []string{"C"}}, now); err != nil || got.Refused() {
		t.Errorf("what is applied already is not judged again: got %q, %v", reply(got), err)
	}
}

func TestDecideRemove(t *testing.T) {
	apps := map[string][]ID{"openstack": {"C"}, "ceph": {"C", "D"}}
	for _, tc := range []struct {
		name string
		req  RemoveRequest
		apps map[string][]ID
		want string
	}{
		{"takes back what requires before what is required", RemoveRequest{IDs: []string{"D", "C"}}, nil,
			"info: C has been removed from the repo\ninfo: D has been removed from the repo\n19.09 C: Applied to Available\n19.09 D: Applied to Available\n"},
		{"what is not there is only said", RemoveRequest{IDs: []string{"A", "C"}}, nil,
			"info: A is not in the repo\ninfo: C has been removed from the repo\n19.09 C: Applied to Available\n"},
		{"a patch that an applied one requires", RemoveRequest{IDs: []string{"D"}}, nil, "error: D is required by: C\n"},
		{"a patch that only an Available one requires", RemoveRequest{IDs: []string{"A"}}, nil, "info: A is not in the repo\n"},
		{"unremovable", RemoveRequest{IDs: []string{"U", "C"}}, nil, "error: Patch U is not removable\n"},
		{"unremovable, insisting", RemoveRequest{IDs: []string{"U"}, RemoveUnremovable: true}, nil,
			"info: U has been removed from the repo\nwarning: Unremovable patch U being removed\n19.09 U: Applied to Available\n"},
		{"a refusal promises nothing", RemoveRequest{IDs: []string{"U", "D"}, RemoveUnremovable: true}, nil, "error: D is required by: C\n"},
		{"committed", RemoveRequest{IDs: []string{"E"}}, nil, "error: Patch E is committed and cannot be removed\n"},
		{"committed and unremovable, insisting", RemoveRequest{IDs: []string{"V"}, RemoveUnremovable: true}, nil, "error: Patch V is committed and cannot be removed\n"},
		{"unknown", RemoveRequest{IDs: []string{"--all", "C"}}, nil, "error: Patch --all does not exist\n"},
		{"an application depends on it", RemoveRequest{IDs: []string{"C", "D"}}, apps,
			"error: C is required by application(s): ceph, openstack\nerror: D is required by application(s): ceph\n"},
		{"skipping that", RemoveRequest{IDs: []string{"C"}, SkipApplications: true}, apps,
			"info: C has been removed from the repo\n19.09 C: Applied to Available\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			now := trustsAll()
			now.Applications = tc.apps
			got, err := DecideRemove(cluster(t), tc.req, now)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(reply(got), tc.want); d != "" {
				t.Errorf("decision (-got +want): %s", d)
			}
		})
	}
	t.Run("a semantic check is refused, not skipped", func(t *testing.T) {
		set := cluster(t)
		s := set["S"]
		s.RepoState = RepoApplied
		set["S"] = s
		got, err := DecideRemove(set, RemoveRequest{IDs: []string{"S"}}, trustsAll())
		if want := "error: cannot remove S: it carries a semantic check, which this version cannot run yet\n"; err != nil || reply(got) != want {
			t.Errorf("got %q, %v; want %q", reply(got), err, want)
		}
		if got, err := DecideRemove(set, RemoveRequest{IDs: []string{"S"}, SkipSemantic: true}, trustsAll()); err != nil || got.Refused() {
			t.Errorf("skipping it: got %q, %v", reply(got), err)
		}
	})
}

func TestApplyAndRemoveWaitForInstalls(t *testing.T) {
	reporting := trustsAll()
	reporting.Hosts = append(reporting.Hosts, with(reported("b"), func(h *host.Host) { h.Report.State = host.Installing }))
	told := trustsAll()
	told.Installing = []string{"b"}
	for name, now := range map[string]Situation{"by its report": reporting, "by an operation": told} {
		t.Run(name, func(t *testing.T) {
			_, applyErr := DecideApply(cluster(t), ApplyRequest{IDs: []string{"A"}}, now)
			_, removeErr := DecideRemove(cluster(t), RemoveRequest{IDs: []string{"C"}}, now)
			for _, err := range []error{applyErr, removeErr} {
				if !errors.Is(err, ErrInstalling) || err.Error() != "Rejected: One or more nodes are installing patches." || problem.KindOf(err) != problem.Conflict {
					t.Errorf("got %v", err)
				}
			}
			if got := DecideDelete(cluster(t), []string{"A"}, now); got.Refused() {
				t.Errorf("delete waits too: %s", reply(got))
			}
		})
	}
}

func TestDecideDelete(t *testing.T) {
	older := with(reported("a"), func(h *host.Host) { h.Report.Revision = 2 })
	for _, tc := range []struct {
		name  string
		ids   []string
		hosts []host.Host
		want  string
	}{
		{"what requires goes before what is required", []string{"A", "B"}, []host.Host{reported("a")},
			"info: A has been deleted\ninfo: B has been deleted\n19.09 B: Available to \n19.09 A: Available to \n"},
		{"others may require it", []string{"A"}, nil, "info: A has been deleted\n19.09 A: Available to \n"},
		{"applied, committed", []string{"A", "C", "E"}, nil, "error: Patch C not in Available state\nerror: Patch E not in Available state\n"},
		{"still on a host", []string{"R"}, []host.Host{older}, "error: Patch R not in Available state\n"},
		{"gone from every host", []string{"R"}, []host.Host{reported("a")}, "info: R has been deleted\n19.09 R: Available to \n"},
		{"unknown", []string{"NOPE", "A"}, nil, "error: Patch NOPE does not exist\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set := cluster(t)
			removed := one(t, "R", "r-1-1.noarch")
			removed.Changed = 4
			set["R"] = removed
			if d := cmp.Diff(reply(DecideDelete(set, tc.ids, Situation{Hosts: tc.hosts})), tc.want); d != "" {
				t.Errorf("decision (-got +want): %s", d)
			}
		})
	}
}

func TestAfterMovesOnlyWhatChanges(t *testing.T) {
	set := cluster(t)
	d := Decision{Changes: []Change{
		{ID: "A", Release: "19.09", From: RepoAvailable, To: RepoApplied},
		{ID: "X", Release: "20.01", From: RepoAvailable, To: RepoApplied},
		{ID: "B", Release: "19.09", From: RepoAvailable},
	}}
	if diff := cmp.Diff(d.Releases(), []string{"19.09", "20.01"}); diff != "" {
		t.Error(diff)
	}
	next := d.After(set, func(release string) int64 { return map[string]int64{"19.09": 8, "20.01": 2}[release] })
	want := cluster(t)
	delete(want, "B")
	a, x := want["A"], want["X"]
	a.RepoState, a.Changed, x.RepoState, x.Changed = RepoApplied, 8, RepoApplied, 2
	want["A"], want["X"] = a, x
	if diff := cmp.Diff(next, want); diff != "" {
		t.Errorf("next set (-got +want): %s", diff)
	}
	if diff := cmp.Diff(set, cluster(t)); diff != "" {
		t.Errorf("the given set changed: %s", diff)
	}
	if got := (Decision{Changes: d.Changes[2:]}).Releases(); len(got) > 0 {
		t.Errorf("a delete makes no generation, got %v", got)
	}
}

func TestDecideUpload(t *testing.T) {
	base := map[rpm.Key]rpm.NEVRA{}
	for _, s := range []string{"inventory-2.4-6.tis.x86_64", "new-2:1.0-1.x86_64"} {
		n := nevra(t, s)
		base[n.Key()] = n
	}
	known := one(t, "KNOWN", "other-1-1.x86_64")
	known.XML, known.Status = "old", Some("DEV")
	known.RepoState, known.Changed = RepoApplied, 3
	known.Personalities = map[host.Personality][]string{host.Worker: {"other"}}
	committed := one(t, "DONE", "done-1-1.x86_64")
	committed.RepoState = RepoCommitted
	set := setOf(known, committed)
	again := func(edit func(*Patch)) Patch {
		p := one(t, "KNOWN", "other-1-1.x86_64")
		p.Personalities = map[host.Personality][]string{host.Worker: {"other"}}
		p.XML, p.Status, p.Summary = "new", Some("OBS"), Some("do not use")
		if edit != nil {
			edit(&p)
		}
		return p
	}
	const mismatch = "Contents of KNOWN do not match re-imported patch: "
	for _, tc := range []struct {
		name string
		file string
		p    Patch
		base map[rpm.Key]rpm.NEVRA
		info string
		err  string
	}{
		{"a new patch", "/some/where/P.patch", one(t, "P", "inventory-2.4-7.tis.x86_64", "extra-1-1.noarch"), base, "P is now available", ""},
		{"another architecture is another package", "P.patch", one(t, "P", "inventory-2.4-6.tis.i686"), base, "P is now available", ""},
		{"the release is not installed", "P.patch", one(t, "P", "extra-1-1.noarch"), nil, "",
			"Patch validation failed for P:\nPatch P software release (19.09) is not installed"},
		{"not newer than the base", "P.patch", one(t, "P", "inventory-2.4-6.tis.x86_64"), base, "",
			"Patch validation failed for P:\nRPM inventory-2.4-6.tis.x86_64.rpm in patch P must be higher version than original (2.4-6.tis)"},
		{"not newer because of the epoch", "P.patch", one(t, "P", "new-9-9.x86_64"), base, "",
			"Patch validation failed for P:\nRPM new-9-9.x86_64.rpm in patch P must be higher version than original (2:1.0-1)"},
		{"provided already", "P.patch", one(t, "P", "extra-1-1.noarch", "other-1-1.x86_64"), base, "",
			"Patch validation failed for P:\nPatch P contains rpm other-1-1.x86_64.rpm, which is already provided by patch KNOWN"},
		{"another version of what is provided", "P.patch", one(t, "P", "other-1-2.x86_64"), base, "P is now available", ""},
		{"one package twice", "P.patch", one(t, "P", "extra-1-1.noarch", "extra-1-2.noarch"), base, "",
			"Patch validation failed for P:\nPatch P contains extra.noarch twice, as extra-1-1.noarch.rpm and as extra-1-2.noarch.rpm; keep one of them"},
		{"the file name is not the ID", "Q.patch", one(t, "P", "extra-1-1.noarch"), base, "",
			"Patch validation failed for Q:\nthe file is named Q.patch, but its metadata name P; rename it to P.patch"},
		{"the wrong extension", "demo.zip", Patch{}, base, "", "File must end in .patch extension: demo.zip"},
		{"no extension", "dir/demo", Patch{}, base, "", "File must end in .patch extension: demo"},
		{"committed", "DONE.patch", Patch{}, base, "DONE is committed. Metadata not updated", ""},
		{"again, with another status and text", "KNOWN.patch", again(nil), base, "KNOWN is already imported. Updated metadata only", ""},
		{"again, under any extension, the release gone", "KNOWN.zip", again(nil), nil, "KNOWN is already imported. Updated metadata only", ""},
		{"again, with other contents", "KNOWN.patch", again(func(p *Patch) { p.Contents = []string{"x-1-1.noarch.rpm"} }), base, "", mismatch + "contents differ; only status and texts may change"},
		{"again, with other bytes", "KNOWN.patch", again(func(p *Patch) { p.Packages = []Package{{File: p.Packages[0].File, SHA256: "z"}} }), base, "", mismatch + "the content of other-1-1.x86_64.rpm differs; only status and texts may change"},
		{"again, for another release and in service", "KNOWN.patch", again(func(p *Patch) { p.Release, p.RebootRequired = "20.01", Some("N") }), base, "", mismatch + "release differs, reboot-required differs; only status and texts may change"},
		{"again, with other requirements", "KNOWN.patch", again(func(p *Patch) { p.Requires = []ID{"DONE"} }), base, "", mismatch + "requirements differ; only status and texts may change"},
		{"again, for other personalities", "KNOWN.patch", again(func(p *Patch) { p.Personalities = nil }), base, "", mismatch + "packages for worker differ; only status and texts may change"},
		{"again, with a semantic check", "KNOWN.patch", again(func(p *Patch) { p.Checks = map[Action]string{PreApply: "x"} }), base, "", mismatch + "semantic checks differ; only status and texts may change"},
		{"again, unremovable and for the running release only", "KNOWN.patch", again(func(p *Patch) { p.Unremovable, p.ApplyActiveReleaseOnly = Some("Y"), Some("Y") }), base, "", mismatch + "unremovable differs, apply-active-release-only differs; only status and texts may change"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := DecideUpload(set, tc.file, tc.p, tc.base)
			if got := strings.Join(u.Info, "|"); got != tc.info {
				t.Errorf("info %q, want %q", got, tc.info)
			}
			if got := strings.Join(u.Error, "|"); got != tc.err {
				t.Errorf("error %q, want %q", got, tc.err)
			}
			if saves := strings.HasSuffix(tc.info, "available") || strings.HasSuffix(tc.info, "only"); saves != (u.Save != nil) {
				t.Errorf("saves %v, want %v", u.Save, saves)
			}
			if u.Save == nil || !u.Reimport {
				return
			}
			want := again(nil)
			want.RepoState, want.Changed = RepoApplied, 3
			if d := cmp.Diff(*u.Save, want); d != "" {
				t.Errorf("saved (-got +want): %s", d)
			}
		})
	}
}

func TestStemIsWhatTheOriginalTakes(t *testing.T) {
	for file, want := range map[string][2]string{
		"P_1.0_0001.patch": {"P_1.0_0001", ".patch"},
		"/a/b.c/P":         {"P", ""},
		".patch":           {".patch", ""},
		"P.tar.patch":      {"P.tar", ".patch"},
	} {
		stem, ext := Stem(file)
		if got := [2]string{stem, ext}; got != want {
			t.Errorf("%s: got %v, want %v", file, got, want)
		}
	}
}

func TestRequiredBy(t *testing.T) {
	if got := RequiredBy(cluster(t), "A"); !slices.Equal(got, []ID{"B"}) {
		t.Errorf("got %v", got)
	}
}
