package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/repo/repodata"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// Blobs is where the packages of patches lie. Link gives the content with a SHA-256 a further name, dst, which must not
// exist; it links where it can and copies where it must.
type Blobs interface {
	Link(digest, dst string) error
}

// Builder builds generations in a folder that belongs to it alone: rel-R/<revision> for each. It is safe for concurrent
// use as long as no two calls concern the same release.
type Builder struct {
	dir   string
	blobs Blobs
}

// NewBuilder returns a Builder over the folder dir, which is made when the first generation is.
func NewBuilder(dir string, blobs Blobs) *Builder { return &Builder{dir: dir, blobs: blobs} }

// Built is a generation on disk.
type Built struct {
	Release      string
	Revision     int64
	RepomdSHA256 string // lower-case hexadecimal; pins everything in the generation
	Metadata     []File // the files of repodata/, sorted; the packages are blobs already
}

// File is one metadata file of a generation.
type File struct {
	Path   string // below the root of the generation
	SHA256 string
	Size   int64
}

// aside starts the names of folders that no reader may look at: being built, or being removed.
const aside = ".aside-"

// Path is the folder of a generation, whether it exists or not. Its text is the file path of the repository listener:
// rel-R/<revision> below the Builder's folder.
func (b *Builder) Path(release string, revision int64) string {
	return filepath.Join(b.releaseDir(release), strconv.FormatInt(revision, 10))
}

func (b *Builder) releaseDir(release string) string { return filepath.Join(b.dir, "rel-"+release) }

// Build makes the generation unless it is there already, and returns it once it is durable. A folder of that revision
// with another content was never published and is replaced: its builder was interrupted, or lost a race for the revision.
// So never build a published revision with anything but its own content. After an error nothing has become visible.
func (b *Builder) Build(ctx context.Context, g Generation) (Built, error) {
	if _, err := patch.ParseRelease(g.Release); err != nil {
		return Built{}, err
	}
	if g.Revision < 1 {
		return Built{}, fmt.Errorf("cannot build generation %d of release %s: generations are numbered from 1", g.Revision, g.Release)
	}
	if built, err := b.Check(ctx, g); err == nil {
		return built, nil
	} else if ctx.Err() != nil {
		return Built{}, context.Cause(ctx)
	}
	dir := b.releaseDir(g.Release)
	if err := durable.MkdirAll(dir, 0o755); err != nil {
		return Built{}, cannotBuild(g, err)
	}
	temp, err := os.MkdirTemp(dir, aside)
	if err != nil {
		return Built{}, cannotBuild(g, err)
	}
	err = b.fill(ctx, temp, g)
	if err == nil {
		err = durable.Replace(temp, b.Path(g.Release, g.Revision))
	}
	// Whatever is there by then: a failed attempt, or what was replaced.
	if err := errors.Join(err, os.RemoveAll(temp)); err != nil {
		return Built{}, cannotBuild(g, err)
	}
	built, err := b.Check(ctx, g)
	if err != nil {
		if why := b.damaged(g); why != nil {
			err = why
		}
		return Built{}, cannotBuild(g, err)
	}
	return built, nil
}

// damaged names the packages of a generation whose content is not what it was when they were verified: disks do that.
func (b *Builder) damaged(g Generation) error {
	var bad []string
	for _, pkg := range g.Packages {
		got, err := fileDigest(filepath.Join(b.Path(g.Release, g.Revision), filepath.FromSlash(location(pkg))))
		if err != nil {
			return err
		}
		if got != pkg.SHA256 {
			bad = append(bad, pkg.NEVRA.FileName())
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return problem.Errorf(problem.Conflict, "damaged on the controller's disk: %s; delete the patches that brought them and upload them again", strings.Join(bad, ", "))
}

func fileDigest(path string) (_ string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func cannotBuild(g Generation, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return problem.Errorf(problem.Unavailable, "cannot build generation %d of release %s: the disk is full; free some space and try again: %w", g.Revision, g.Release, err)
	}
	return fmt.Errorf("cannot build generation %d of release %s: %w", g.Revision, g.Release, err)
}

// fill makes the whole generation in the folder temp.
func (b *Builder) fill(ctx context.Context, temp string, g Generation) error {
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	made := map[string]bool{}
	for _, pkg := range g.Packages {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		dst := filepath.Join(temp, filepath.FromSlash(location(pkg)))
		if dir := filepath.Dir(dst); !made[dir] {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			made[dir] = true
		}
		if err := b.blobs.Link(pkg.SHA256, dst); err != nil {
			return fmt.Errorf("cannot put %s into the repository: %w", pkg.NEVRA, err)
		}
		// primary.xml records the time of the file: it has to be the same wherever and whenever this is built.
		built := time.Unix(pkg.Built, 0)
		if err := os.Chtimes(dst, built, built); err != nil {
			return err
		}
	}
	comps := filepath.Join(temp, "comps.xml")
	if err := os.WriteFile(comps, g.comps(), 0o644); err != nil {
		return err
	}
	if err := repodata.Create(ctx, temp, g.Revision, comps); err != nil {
		return err
	}
	if err := repodata.Add(temp, repodata.TypeUpdateInfo, "updateinfo.xml", g.updateInfo(), g.Revision); err != nil {
		return err
	}
	brought, err := repodata.EncodeBrought(g.Brought)
	if err != nil {
		return err
	}
	return repodata.Add(temp, repodata.TypeBrought, "brought.json", brought, g.Revision)
}

// Check returns the generation if it is on disk with exactly this content, and an error that says what differs if not.
// It reads the metadata, and of the packages that they are there with the right size.
func (b *Builder) Check(ctx context.Context, g Generation) (Built, error) {
	dir := b.Path(g.Release, g.Revision)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Built{}, err
	}
	built, err := check(ctx, root, g)
	return built, errors.Join(err, root.Close())
}

func check(ctx context.Context, root *os.Root, g Generation) (Built, error) {
	differs := func(what string) (Built, error) {
		return Built{}, problem.Errorf(problem.Conflict, "generation %d of release %s holds something else: its %s differ", g.Revision, g.Release, what)
	}
	md, err := repodata.Load(ctx, repodata.Folder(root), "")
	if err != nil {
		return Built{}, err
	}
	if md.Revision != g.Revision {
		return differs("revision")
	}
	if !slices.EqualFunc(md.Packages, g.Packages, func(have repodata.Package, want patch.Package) bool {
		return have.NEVRA == want.NEVRA && have.SHA256 == want.SHA256 && have.Location == location(want)
	}) {
		return differs("packages")
	}
	for _, pkg := range g.Packages {
		if info, err := root.Stat(location(pkg)); err != nil || info.Size() != pkg.Size {
			return differs("package files")
		}
	}
	brought, err := repodata.EncodeBrought(g.Brought)
	if err != nil {
		return Built{}, err
	}
	built := Built{Release: g.Release, Revision: g.Revision, RepomdSHA256: md.SHA256}
	files := map[string]File{}
	raw, err := root.ReadFile(repodata.RepomdPath)
	if err != nil {
		return Built{}, err
	}
	repomd, err := repodata.ParseRepomd(strings.NewReader(string(raw)))
	if err != nil {
		return Built{}, err
	}
	want := map[string][]byte{repodata.TypeGroups: g.comps(), repodata.TypeUpdateInfo: g.updateInfo(), repodata.TypeBrought: brought}
	for _, rec := range repomd.Records {
		content, err := root.ReadFile(rec.Location)
		if err != nil {
			return Built{}, err
		}
		if digest(content) != rec.SHA256 {
			return differs(rec.Type + " metadata")
		}
		if text, ok := want[rec.Type]; ok && digest(text) != rec.SHA256 {
			return differs(rec.Type + " metadata")
		}
		delete(want, rec.Type)
		files[rec.Location] = File{rec.Location, rec.SHA256, int64(len(content))}
	}
	for _, typ := range slices.Sorted(maps.Keys(want)) {
		return differs(typ + " metadata")
	}
	files[repodata.RepomdPath] = File{repodata.RepomdPath, md.SHA256, int64(len(raw))}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		built.Metadata = append(built.Metadata, files[path])
	}
	return built, nil
}

func digest(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Sweep removes every generation that keep does not ask for, and what interrupted builds left. It must not run beside
// Build.
func (b *Builder) Sweep(keep func(release string, revision int64) bool) error {
	releases, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot sweep generations: %w", err)
	}
	var errs []error
	for _, rel := range releases {
		name, ok := strings.CutPrefix(rel.Name(), "rel-")
		if !ok || !rel.IsDir() {
			continue
		}
		dir := filepath.Join(b.dir, rel.Name())
		entries, err := os.ReadDir(dir)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if strings.HasPrefix(e.Name(), aside) {
				errs = append(errs, os.RemoveAll(path))
				continue
			}
			revision, err := strconv.ParseInt(e.Name(), 10, 64)
			if err != nil || keep(name, revision) {
				continue
			}
			// A half removed generation must never be seen under its name.
			old := filepath.Join(dir, aside+e.Name()+"-old")
			errs = append(errs, durable.Rename(path, old), os.RemoveAll(old))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot sweep generations: %w", err)
	}
	return nil
}
