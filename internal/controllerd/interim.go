package controllerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/internal/controller"
	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/patch/patchfile"
)

// readBelow reads a file below dir without leaving it.
func readBelow(dir, path string) (_ []byte, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return root.ReadFile(filepath.FromSlash(path))
}

// dirBlobs keeps contents below a folder.
type dirBlobs struct{ dir string }

func newBlobs(dir string) (*dirBlobs, error) {
	b := &dirBlobs{dir}
	return b, errors.Join(durable.MkdirAll(filepath.Join(dir, "sha256"), 0o700), durable.MkdirAll(filepath.Join(dir, "tmp"), 0o700))
}

func (b *dirBlobs) path(d string) string { return filepath.Join(b.dir, "sha256", d[:2], d) }

type spool struct{ dir string }

func (b *dirBlobs) Spool() (patchfile.Spool, error) {
	d, err := os.MkdirTemp(filepath.Join(b.dir, "tmp"), "spool-")
	return &spool{d}, err
}

func (s *spool) Create(name string) (patchfile.SpoolFile, error) {
	return os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
}

func (s *spool) Discard() error { return os.RemoveAll(s.dir) }

func (b *dirBlobs) Keep(sp patchfile.Spool, files []patchfile.Member) error {
	for _, m := range files {
		text, err := io.ReadAll(m.Reader())
		if err != nil {
			return err
		}
		if _, err := b.Put(text); err != nil {
			return err
		}
	}
	return sp.Discard()
}

func (b *dirBlobs) Put(content []byte) (string, error) {
	sum := sha256.Sum256(content)
	d := hex.EncodeToString(sum[:])
	if _, err := os.Stat(b.path(d)); err == nil {
		return d, nil
	}
	if err := durable.MkdirAll(filepath.Dir(b.path(d)), 0o700); err != nil {
		return "", err
	}
	return d, durable.WriteFile(b.path(d), content, 0o644)
}

func (b *dirBlobs) Link(d, dst string) error { return os.Link(b.path(d), dst) }

func (b *dirBlobs) Sweep(keep func(string) bool) error {
	return filepath.WalkDir(filepath.Join(b.dir, "sha256"), func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || keep(e.Name()) {
			return err
		}
		return os.Remove(path)
	})
}

func (b *dirBlobs) Free() (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(b.dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// plainJournal numbers records.
type plainJournal struct {
	mu    sync.Mutex
	store store.Store
	name  string
	last  int64
}

func newJournal(ctx context.Context, st store.Store, name string) (*plainJournal, error) {
	items, _, err := st.List(ctx, "journal/"+name+"/")
	return &plainJournal{store: st, name: name, last: int64(len(items))}, err
}

func (j *plainJournal) Commit(ctx context.Context, txn store.Txn, facts []controller.Fact) (int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := j.last
	for _, f := range facts {
		n++
		text, err := json.Marshal(map[string]any{"number": n, "time": time.Now().UTC(), "fact": f})
		if err != nil {
			return 0, err
		}
		txn.Then = append(txn.Then, store.Change{Key: fmt.Sprintf("journal/%s/%020d", j.name, n), Value: text})
	}
	rev, err := j.store.Commit(ctx, txn)
	if err == nil {
		j.last = n
	}
	return rev, err
}

func (j *plainJournal) Head() api.JournalHead { return api.JournalHead{Number: j.last} }

func (j *plainJournal) Page(ctx context.Context, after int64) (api.JournalPage, error) {
	items, _, err := j.store.List(ctx, "journal/"+j.name+"/")
	out := api.JournalPage{Records: []json.RawMessage{}}
	for i, it := range items {
		if int64(i) >= after {
			out.Records = append(out.Records, it.Value)
		}
	}
	return out, err
}

func (j *plainJournal) Verify(context.Context) (api.JournalCheck, error) {
	return api.JournalCheck{Head: j.Head(), Records: j.last}, nil
}
