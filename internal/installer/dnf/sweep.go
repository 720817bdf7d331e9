package dnf

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Sweep implements [installer.Tools]. rpm unpacks a file under its name with ";" and eight hexadecimal digits behind it
// and renames it when it is whole; nobody else ever deletes what a killed rpm leaves. Only folders of the given packages
// are looked at, and only names that one of their files could have had.
func (d *Driver) Sweep(ctx context.Context, files []string) (int, error) {
	done, err := d.exclusive(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	names := map[string]map[string]bool{} // folder to base names
	for _, f := range files {
		out, err := d.query(ctx, "-qp", "--nosignature", "--qf", `[%{FILENAMES}\n]`, f)
		if err != nil {
			if ctx.Err() != nil {
				return 0, err
			}
			continue // a file that is not whole was never unpacked
		}
		for name := range strings.Lines(string(out)) {
			dir, base := filepath.Split(strings.TrimSuffix(name, "\n"))
			if dir == "" {
				continue
			}
			if names[dir] == nil {
				names[dir] = map[string]bool{}
			}
			names[dir][base] = true
		}
	}
	n := 0
	for dir, bases := range names {
		dir, ok := d.resolve(dir)
		if !ok {
			continue
		}
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return n, err
		}
		for _, e := range entries {
			base, mark, ok := strings.Cut(e.Name(), ";")
			if !ok || !bases[base] || e.IsDir() || len(mark) != 8 || strings.Trim(mark, "0123456789abcdef") != "" {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

// resolve returns where a folder of the host lies, seen from here; false if a link leads out of the host's root.
func (d *Driver) resolve(dir string) (string, bool) {
	path, err := filepath.EvalSymlinks(filepath.Join(d.cfg.Root, dir))
	if err != nil {
		return "", false
	}
	root, err := filepath.EvalSymlinks(d.cfg.Root)
	if err != nil {
		return "", false
	}
	return path, root == "/" || path == root || strings.HasPrefix(path, root+"/")
}
