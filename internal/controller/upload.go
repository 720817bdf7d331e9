package controller

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"slices"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/fanout"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/patch/patchfile"
	"github.com/starpatch/starpatch/problem"
)

// Upload reads one patch file and, when every check has passed, stores it. Until then nothing of it is visible, and
// after a refusal nothing of it is left. Uploads are read side by side and decided one after the other.
func (c *Controller) Upload(ctx context.Context, actor, filename string, body io.Reader) (api.Messages, error) {
	stem, _ := patch.Stem(filename)
	if u, done := patch.DecideUploadByName(c.snap.Load().patches, filename); done {
		return c.uploaded(ctx, actor, stem, u), nil
	}
	keys, err := c.parts.Trust.Now()
	if err != nil {
		return api.Messages{}, err
	}
	if err := errors.Join(c.checkSpace(0), c.checkRoom(ctx)); err != nil {
		c.refused(ctx, actor, "upload", stem, err)
		return api.Messages{}, err
	}
	spool, err := c.parts.Blobs.Spool()
	if err != nil {
		return api.Messages{}, err
	}
	f, err := patchfile.Open(interruptible{ctx, body}, &guarded{Spool: spool, check: c.checkSpace}, patchfile.Options{Trust: keys, Limits: c.cfg.Limits, Fanout: fanout.New})
	if err != nil {
		if problem.KindOf(err) == problem.Invalid || problem.KindOf(err) == problem.TooLarge {
			why := err.Error()
			if errors.Is(err, patchfile.ErrUnsigned) {
				why = patchfile.ErrUnsigned.Error() // the original's reply to the byte, without a detail
			}
			return c.uploaded(ctx, actor, stem, patch.Upload{Error: []string{patch.ValidationFailed(stem, why)}}), nil
		}
		c.refused(ctx, actor, "upload", stem, err)
		return api.Messages{}, err
	}
	u, err := c.store(ctx, actor, filename, f, spool)
	if cerr := f.Close(); cerr != nil {
		c.log.Warn("cannot close the spool of an upload", "patch", stem, "err", cerr)
	}
	if err != nil {
		return api.Messages{}, err
	}
	return c.uploaded(ctx, actor, stem, u), nil
}

// uploaded makes the reply of an upload and journals a refusal.
func (c *Controller) uploaded(ctx context.Context, actor, stem string, u patch.Upload) api.Messages {
	if len(u.Error) > 0 {
		c.refused(ctx, actor, "upload", stem, problem.Errorf(problem.Invalid, "%s", u.Error[0]))
	}
	return api.Messages{Info: patch.Lines(u.Info), Error: patch.Lines(u.Error)}
}

// store decides about a verified file and saves it: first its blobs, then the record that names them. The spool is used
// up when it returns.
func (c *Controller) store(ctx context.Context, actor, filename string, f *patchfile.File, spool patchfile.Spool) (patch.Upload, error) {
	leave, err := c.enter(ctx)
	if err != nil {
		return patch.Upload{}, errors.Join(err, spool.Discard())
	}
	defer leave()
	sum := sha256.Sum256(f.XML)
	p := patch.Patch{Metadata: f.Metadata, Packages: f.Packages, XML: hex.EncodeToString(sum[:]), Signer: f.Signer}
	var files []patchfile.Member
	files = append(files, f.PackageFiles()...)
	for action, m := range f.Checks() {
		if p.Checks == nil {
			p.Checks = map[patch.Action]string{}
		}
		p.Checks[action] = m.SHA256
		files = append(files, m)
	}
	s := c.snap.Load()
	base, err := c.parts.Feeds.Base(ctx, p.Release)
	if err != nil {
		return patch.Upload{}, errors.Join(err, spool.Discard())
	}
	u := patch.DecideUpload(s.patches, filename, p, base)
	if u.Save == nil {
		return u, spool.Discard()
	}
	if u.Reimport {
		files = nil // the packages are there already
	}
	if err := c.parts.Blobs.Keep(spool, files); err != nil {
		return patch.Upload{}, err
	}
	if _, err := c.parts.Blobs.Put(f.XML); err != nil {
		return patch.Upload{}, err
	}
	old := s.kept[p.ID]
	r := patchRecord{Format: recordFormat, Patch: *u.Save, Former: old.former}
	r.Patch.RepoState, r.Patch.Changed = patch.RepoAvailable, 0 // its release's record says
	if was := s.patches[p.ID].XML; u.Reimport && was != r.Patch.XML {
		r.Former = append(slices.Clone(old.former), was)
	}
	err = c.commit(ctx, func(*snapshot) (*change, error) {
		ch := &change{}
		if err := ch.put(patchPrefix+string(p.ID), old.rev, r, func(s *snapshot, rev int64) { s.setPatch(r, rev) }); err != nil {
			return nil, err
		}
		outcome := "done"
		if u.Reimport {
			outcome = "metadata updated"
		}
		ch.tell(Fact{Actor: actor, Action: "upload", Subject: string(p.ID), Outcome: outcome, Detail: map[string]any{
			"release": p.Release, "packages": len(p.Packages), "xml": p.XML, "signer": p.Signer}})
		return ch, nil
	})
	if err != nil {
		return patch.Upload{}, err
	}
	c.log.Info("upload", "patch", p.ID, "by", actor, "metadata_only", u.Reimport)
	return u, nil
}

// checkSpace refuses to write n more bytes when the disk would then be short for the state store and for reports.
func (c *Controller) checkSpace(n int64) error {
	free, err := c.parts.Blobs.Free()
	if err != nil {
		return err
	}
	if free-n < c.cfg.SpareSpace {
		return problem.Errorf(problem.Unavailable, "not enough space on the controller's disk: %d MiB are free and %d MiB are kept for the controller itself; free some, for example by deleting patches", free>>20, c.cfg.SpareSpace>>20)
	}
	return nil
}

// fullStore is the share of the state store's limit above which uploads are refused, so that there is room for what hosts
// report.
const fullStore = 0.8

// checkRoom refuses to add to a state store that is nearly full.
func (c *Controller) checkRoom(ctx context.Context) error {
	if c.parts.Room == nil {
		return nil
	}
	used, err := c.parts.Room.Used(ctx)
	if err != nil {
		return err
	}
	if used > fullStore {
		return problem.Errorf(problem.Unavailable, "the state store is %.0f%% full; what is left is kept for what hosts report; delete patches or drop hosts that are gone", used*100)
	}
	return nil
}

// guarded is a spool that looks at the free space while it grows.
type guarded struct {
	patchfile.Spool
	check func(int64) error
}

// spaceStep is how many bytes are written between two looks at the free space.
const spaceStep = 32 << 20

func (g *guarded) Create(name string) (patchfile.SpoolFile, error) {
	f, err := g.Spool.Create(name)
	if err != nil {
		return nil, err
	}
	return &guardedFile{SpoolFile: f, check: g.check}, nil
}

type guardedFile struct {
	patchfile.SpoolFile
	check   func(int64) error
	written int64
}

func (f *guardedFile) Write(p []byte) (int, error) {
	if before := f.written; (before+int64(len(p)))/spaceStep > before/spaceStep {
		if err := f.check(spaceStep); err != nil {
			return 0, err
		}
	}
	n, err := f.SpoolFile.Write(p)
	f.written += int64(n)
	return n, err
}

// interruptible ends the reading of an upload when its context does.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.Read(p)
}
