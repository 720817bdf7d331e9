package rpmmake

import (
	"os"
	"strings"

	"github.com/starpatch/starpatch/problem"
)

// Where Debian's busybox-static and bash-static put their programs.
const (
	Busybox    = "/bin/busybox"
	StaticBash = "/bin/bash-static"
)

// baseApplets are the commands that scriptlets, patch scripts and the lab's services use.
const baseApplets = "ash awk basename cat chgrp chmod chown chroot cmp cp cut date dd df diff dirname du echo egrep env expr false fgrep find " +
	"grep gunzip gzip head hostname id kill killall ln logger ls md5sum mkdir mkfifo mknod mktemp mount mv nc nohup od paste pidof " +
	"printf ps pwd readlink realpath rm rmdir sed seq setsid sh sha256sum sleep sort stat sync tail tar tee test timeout touch tr true " +
	"tty umount uname uniq wc wget which xargs"

// Filesystem is the package that every root starts with: the usual folders, /bin, /sbin, /lib and /lib64 as links into
// /usr, and /var/run as a link to /run.
func Filesystem() Spec {
	s := Spec{Name: "lab-filesystem", EVR: EVR("1.0-1"), Summary: "Folders of a host"}
	for d := range strings.FieldsSeq("/boot /dev /etc /home /opt /proc /root /run /srv /sys /usr /usr/bin /usr/lib /usr/lib64 /usr/sbin /usr/share /usr/local /var /var/cache /var/lib /var/log /var/spool") {
		s.Files = append(s.Files, File{Path: d, Dir: true})
	}
	s.Files = append(s.Files, File{Path: "/tmp", Dir: true}, File{Path: "/var/tmp", Dir: true})
	for _, l := range [][2]string{{"/bin", "usr/bin"}, {"/sbin", "usr/sbin"}, {"/lib", "usr/lib"}, {"/lib64", "usr/lib64"}, {"/var/run", "../run"}} {
		s.Files = append(s.Files, File{Path: l[0], Link: l[1]})
	}
	return s
}

// Release is the package that tells the release of a host to dnf.
func Release(release string) Spec {
	return Spec{Name: "lab-release", EVR: EVR(release + "-1"), Summary: "Release of a host", Requires: []string{"lab-filesystem"},
		Provides: []string{"system-release = " + release, "system-release(releasever) = " + release},
		Files:    []File{{Path: "/etc/lab-release", Body: []byte("Lab release " + release + "\n")}}}
}

// Shells are the packages lab-busybox, with /bin/sh and the usual small commands, and lab-bash, with /bin/bash, made
// from this machine's static programs.
func Shells() ([]Spec, error) {
	busybox, err := os.ReadFile(Busybox)
	if err != nil {
		return nil, problem.Errorf(problem.Unavailable, "cannot read %s: %w; install the Debian package busybox-static", Busybox, err)
	}
	bash, err := os.ReadFile(StaticBash)
	if err != nil {
		return nil, problem.Errorf(problem.Unavailable, "cannot read %s: %w; install the Debian package bash-static", StaticBash, err)
	}
	bb := Spec{Name: "lab-busybox", EVR: EVR("1.35.0-1"), Arch: "x86_64", Summary: "Small commands", Requires: []string{"lab-filesystem"}, Provides: []string{"/bin/sh"},
		Files: []File{{Path: "/usr/bin/busybox", Body: busybox, Mode: 0o755}}}
	for a := range strings.FieldsSeq(baseApplets) {
		bb.Files = append(bb.Files, File{Path: "/usr/bin/" + a, Link: "busybox"})
	}
	return []Spec{bb, {Name: "lab-bash", EVR: EVR("5.2.15-1"), Arch: "x86_64", Summary: "Shell of patch scripts", Requires: []string{"lab-filesystem"}, Provides: []string{"/bin/bash"},
		Files: []File{{Path: "/usr/bin/bash", Body: bash, Mode: 0o755}}}}, nil
}

// Base is the smallest set that makes a root in which scriptlets and patch scripts run.
func Base(release string) ([]Spec, error) {
	shells, err := Shells()
	if err != nil {
		return nil, err
	}
	return append([]Spec{Filesystem(), Release(release)}, shells...), nil
}
