package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// vectors holds patch files, packages and keys made with the original tools.
const vectors = "../patch/patchfile/testdata/vectors"

// baseFeed makes a folder of the eight base packages that the vectors' README names.
func baseFeed(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{
		"peer-base-1.0-1.noarch.rpm", "peer-app-1.0-1.noarch.rpm", "peer-lib-1.0-1.noarch.rpm", "peer-kernel-1.0-1.noarch.rpm",
		"peer-common-1.0-1.noarch.rpm", "peer-svc-1.0-1.noarch.rpm", "peer-order-1.0-9.noarch.rpm", "peer-arch-1.0-1.x86_64.rpm",
	} {
		data, err := os.ReadFile(filepath.Join(vectors, "rpms", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// vector is the absolute path of one of the original's patch files.
func vector(t *testing.T, number string) (file, id string) {
	t.Helper()
	id = "PEER_19.09_PATCH_" + number
	file, err := filepath.Abs(filepath.Join(vectors, "patches", id+".patch"))
	if err != nil {
		t.Fatal(err)
	}
	return file, id
}

// trustVectors makes the lab accept what the vectors' keys signed.
func (l *lab) trustVectors() {
	l.t.Helper()
	for _, key := range []string{"dev-public-key.pem", "formal-public-key.pem"} {
		path, err := filepath.Abs(filepath.Join(vectors, "keys", key))
		if err != nil {
			l.t.Fatal(err)
		}
		l.must("sw-patch-controller", "trust", "add", "formal", path)
	}
}

func (l *lab) upload(number string) (id string) {
	l.t.Helper()
	file, id := vector(l.t, number)
	if got := l.must("sw-patch", "upload", file); !strings.Contains(got, id+" is now available") {
		l.t.Fatalf("upload %s: got %q", id, got)
	}
	return id
}

func (l *lab) apply(id string) {
	l.t.Helper()
	if got := l.must("sw-patch", "apply", id); !strings.Contains(got, id+" is now in the repo") {
		l.t.Fatalf("apply %s: got %q", id, got)
	}
}

func (l *lab) remove(id string) {
	l.t.Helper()
	if got := l.must("sw-patch", "remove", id); !strings.Contains(got, id+" has been removed from the repo") {
		l.t.Fatalf("remove %s: got %q", id, got)
	}
}

func (l *lab) install(hosts ...string) {
	l.t.Helper()
	for _, h := range hosts {
		if got := l.must("sw-patch", "host-install", h); !strings.Contains(got, "Installation was successful.") {
			l.t.Fatalf("host-install %s: got %q", h, got)
		}
	}
}

var three = []string{"compute-0", "controller-0", "storage-0"}

func (l *lab) wantInstalled(pkg string, want map[string]string) {
	l.t.Helper()
	for host, version := range want {
		equal(l.t, pkg+" on "+host, l.installed(host, pkg), version)
	}
}

func everywhere(version string) map[string]string {
	out := map[string]string{}
	for _, h := range three {
		out[h] = version
	}
	return out
}

func TestTheOriginalsPatchesGoThroughTheirWholeLife(t *testing.T) {
	l := up(t, "--topology", "1+1+1", "--feed", baseFeed(t))
	l.trustVectors()
	l.wantInstalled("peer-svc", everywhere("1.0-1"))

	id1 := l.upload("0001")
	equal(t, "0001 after upload", l.patchState(id1), "Available")
	l.apply(id1)
	equal(t, "0001 after apply", l.patchState(id1), "Partial-Apply")
	l.install("controller-0")
	equal(t, "0001 with one host of three", l.patchState(id1), "Partial-Apply")
	equal(t, "controller-0 current", l.host("controller-0")["Patch Current"], "Yes")
	l.install("compute-0", "storage-0")
	equal(t, "0001 with all hosts", l.patchState(id1), "Applied")
	l.wantInstalled("peer-svc", everywhere("1.0-2"))

	id3 := l.upload("0003")
	l.apply(id3)
	l.install(three...)
	equal(t, "0003", l.patchState(id3), "Applied")
	l.wantInstalled("peer-svc", everywhere("1.0-3"))

	t.Log("new packages go where their personality says")
	id4 := l.upload("0004")
	l.apply(id4)
	l.install(three...)
	equal(t, "0004", l.patchState(id4), "Applied")
	l.wantInstalled("peer-newall", everywhere("1.0-1"))
	l.wantInstalled("peer-newctl", map[string]string{"controller-0": "1.0-1", "compute-0": "", "storage-0": ""})

	t.Log("10 is newer than 9, and unremovable means it")
	id7 := l.upload("0007")
	l.apply(id7)
	l.install(three...)
	equal(t, "0007", l.patchState(id7), "Applied")
	l.wantInstalled("peer-order", everywhere("1.0-10"))
	l.refused("Patch "+id7+" is not removable", "sw-patch", "remove", id7)

	t.Log("a reboot-required patch waits for the lock, and for the reboot")
	id2 := l.upload("0002")
	l.apply(id2)
	for _, h := range three {
		l.refused("Installation rejected. Node must be locked", "sw-patch", "host-install", h)
	}
	l.wantInstalled("peer-kernel", everywhere("1.0-1"))
	l.onHost("storage-0", "/bin/sh", "-c", "touch /var/run/.node_locked")
	l.install("storage-0")
	l.wantInstalled("peer-kernel", map[string]string{"storage-0": "1.0-2", "compute-0": "1.0-1"})
	equal(t, "storage-0 needs its reboot", l.host("storage-0")["Reboot Required"], "Yes")
	l.onHost("storage-0", "reboot")
	equal(t, "storage-0 after its reboot", l.host("storage-0")["Reboot Required"], "No")
	for _, h := range []string{"compute-0", "controller-0"} {
		l.onHost(h, "/bin/sh", "-c", "touch /var/run/.node_locked")
		l.install(h)
	}
	equal(t, "0002", l.patchState(id2), "Applied")

	t.Log("semantic checks are refused until this version can run them, never skipped")
	for _, n := range []string{"0005", "0006"} {
		id := l.upload(n)
		l.refused("cannot apply "+id+": it carries a semantic check, which this version cannot run yet", "sw-patch", "apply", id)
		equal(t, id, l.patchState(id), "Available")
	}
	file8, id8 := vector(t, "0008")
	l.refused("Patch "+id8+" software release (20.01) is not installed", "sw-patch", "upload", file8)

	t.Log("and back again")
	l.refused(id1+" is required by: "+id3, "sw-patch", "remove", id1)
	l.remove(id3)
	l.remove(id1)
	l.remove(id4)
	equal(t, "0003 after remove", l.patchState(id3), "Partial-Remove")
	l.install(three...)
	for _, id := range []string{id1, id3, id4} {
		equal(t, id, l.patchState(id), "Available")
		l.must("sw-patch", "delete", id)
		equal(t, id+" after delete", l.patchState(id), "")
	}
	l.wantInstalled("peer-svc", everywhere("1.0-1"))
	l.wantInstalled("peer-newall", everywhere(""))
	l.wantInstalled("peer-newctl", everywhere(""))
}

func TestTheOriginalsCommitSeriesInstallsAndGoes(t *testing.T) {
	l := up(t, "--topology", "1+1+1", "--feed", baseFeed(t))
	l.trustVectors()
	ids := []string{l.upload("0021"), l.upload("0022"), l.upload("0023")}
	l.refused(ids[0]+" is required by: "+ids[1], "sw-patch", "apply", ids[1])
	l.must("sw-patch", append([]string{"apply"}, ids...)...)
	l.install(three...)
	for _, id := range ids {
		equal(t, id, l.patchState(id), "Applied")
	}
	l.wantInstalled("peer-svc", everywhere("1.0-3"))
	l.wantInstalled("peer-lib", everywhere("1.0-2"))

	file1, id1 := vector(t, "0001")
	l.refused("Patch "+id1+" contains rpm peer-svc-1.0-2.noarch.rpm, which is already provided by patch "+ids[0], "sw-patch", "upload", file1)

	l.must("sw-patch", append([]string{"remove"}, ids...)...)
	l.install(three...)
	for _, id := range ids {
		equal(t, id, l.patchState(id), "Available")
	}
	l.wantInstalled("peer-svc", everywhere("1.0-1"))
	l.wantInstalled("peer-lib", everywhere("1.0-1"))
}

func TestEveryBadPatchIsRefusedAndLeavesNothing(t *testing.T) {
	l := up(t, "--topology", "1+0+0", "--feed", baseFeed(t))
	l.trustVectors()
	for file, want := range map[string]string{
		"bad-md5": "Patch failed verification", "tampered-software": "Patch failed verification", "unsigned": "Patch has not been signed",
		"unknown-key": "Signature check failed", "truncated": "Failed during patch extraction", "no-software": "software.tar",
		"xml-malformed": "metadata.xml", "wrong-filename": "wrong-filename",
	} {
		path, err := filepath.Abs(filepath.Join(vectors, "bad", file+".patch"))
		if err != nil {
			t.Fatal(err)
		}
		l.refused(want, "sw-patch", "upload", path)
	}
	if got := rows(t, l.must("sw-patch", "query")); len(got) != 0 {
		t.Errorf("patches after eight refusals: got %v, want none", got)
	}
}
