package rpmmake_test

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/starpatch/starpatch/internal/rpmmake"
)

func example() rpmmake.Spec {
	return rpmmake.Spec{
		Name: "example", EVR: rpmmake.EVR("2:1.0-3"), Arch: "x86_64",
		Files: []rpmmake.File{
			{Path: "/etc/example.conf", Body: []byte("a=1\n"), Config: true},
			{Path: "/usr/share/example", Dir: true},
			{Path: "/usr/share/example/run", Body: []byte("#!/bin/sh\n"), Mode: 0o755},
			{Path: "/usr/share/example/link", Link: "run"},
		},
		Scripts:  rpmmake.Scripts{Post: "echo post", PreUn: "echo preun"},
		Requires: []string{"other >= 1.0-1"},
		Provides: []string{"thing = 4"},
	}
}

func TestSameSpecGivesSameBytes(t *testing.T) {
	a, err := example().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b, err := example().Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Error("two packages of one spec differ")
	}
}

func TestRPMReadsWhatWasSpecified(t *testing.T) {
	path, err := example().WriteTo(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("rpm", "-K", path).CombinedOutput(); err != nil {
		t.Fatalf("rpm -K: %v\n%s", err, out)
	}
	out, err := exec.Command("rpm", "-qp", "--qf",
		`%{NAME} %{EPOCHNUM} %{VERSION} %{RELEASE} %{ARCH} %{BUILDTIME}\n%{POSTIN}\n%{PREUN}\n[%{FILENAMES} %{FILEMODES:perms} %{FILEFLAGS:fflags} %{FILELINKTOS}\n][%{REQUIRES} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n][%{PROVIDES}\n]`, path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"example 2 1.0 3 x86_64 1567296000\necho post\necho preun\n",
		"/etc/example.conf -rw-r--r-- cn ",
		"/usr/share/example drwxr-xr-x",
		"/usr/share/example/run -rwxr-xr-x",
		"/usr/share/example/link lrwxrwxrwx  run",
		"/bin/sh  \n", "other >= 1.0-1", "thing\n",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("rpm -qp does not show %q:\n%s", want, out)
		}
	}
}

func TestBaseInstallsIntoAnEmptyRoot(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	base, err := rpmmake.Base("19.09")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"--root", root, "--dbpath", "/var/lib/rpm", "--force-debian", "-i"}
	for _, s := range base {
		path, err := s.WriteTo(dir)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	cmd := exec.Command("rpm", args...)
	cmd.Env = []string{"HOME=" + dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("rpm -i: %v\n%s", err, out)
	}
	out, err := exec.Command("chroot", root, "/bin/bash", "-c", "ls -d /var/run/. && /bin/sh -c 'echo ok'").CombinedOutput()
	if err != nil || string(out) != "/var/run/.\nok\n" {
		t.Errorf("shells in the root: %v, %q", err, out)
	}
}
