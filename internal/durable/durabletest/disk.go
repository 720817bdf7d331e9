// Package durabletest has a disk whose power can be cut, to prove what survives.
package durabletest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a file system of its own, on a loop device, whose power can be cut.
type Disk struct {
	loop string

	// Dir is where it is mounted.
	Dir string
}

// NewDisk makes an empty disk, or skips the test where that is not possible. It vanishes with the test.
func NewDisk(t *testing.T) *Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("cutting the power of a disk needs root")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-F", image).CombinedOutput(); err != nil {
		t.Skipf("no mkfs.ext4 (package e2fsprogs): %v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	d := &Disk{loop: strings.TrimSpace(string(out)), Dir: filepath.Join(dir, "mount")}
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", d.loop).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", d.loop, err, out)
		}
	})
	if err := os.Mkdir(d.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(d.loop, d.Dir, "ext4", 0, ""); err != nil {
		t.Skipf("cannot mount a loop device: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(d.Dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return d
}

// EXT4_IOC_SHUTDOWN of linux/fs/ext4/ext4.h, and its flag that throws away what is not on the disk yet.
const (
	shutdown   = 0x8004587d
	noLogFlush = 2
)

// Cut stops the disk at once. Nothing that was not synced is written any more, and every later write fails.
func (d *Disk) Cut(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush), f.Close()); err != nil {
		t.Skipf("this kernel cannot cut the power of ext4: %v", err)
	}
}

// Restore mounts the disk again with what is really on it. No file on it may be open.
func (d *Disk) Restore(t *testing.T) {
	t.Helper()
	if err := unix.Unmount(d.Dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(d.loop, d.Dir, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
}
