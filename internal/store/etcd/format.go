package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/starpatch/starpatch/internal/durable"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/problem"
)

// format is the number of the layout of keys and of the engine's files. It grows when an older version of this program
// could no longer use them.
const format = 1

// formatKey and formatFile hold the number. The file is read before the engine touches its own files, which it would
// refuse less politely; the key serves a site's own etcd.
const (
	formatKey  = "format"
	formatFile = "format.json"
)

type formatRecord struct {
	Format int `json:"format"`
}

func checkFormat(where string, data []byte) error {
	var r formatRecord
	if err := json.Unmarshal(data, &r); err != nil || r.Format < 1 {
		return fmt.Errorf("cannot read the format number of %s: %q", where, data)
	}
	if r.Format > format {
		return problem.Errorf(problem.NotSupported, "cannot use the state store in %s: it has format %d and this version knows formats up to %d; start the version that wrote it", where, r.Format, format)
	}
	return nil
}

// claimDir checks the format of a data folder, and marks a new one.
func claimDir(dir string) error {
	path := filepath.Join(dir, formatFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		data, err := json.Marshal(formatRecord{format})
		if err != nil {
			return err
		}
		return durable.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return err
	}
	return checkFormat(dir, data)
}

// claim checks the format of a site's own etcd, and marks a new one.
func (s *Store) claim(ctx context.Context) error {
	data, err := json.Marshal(formatRecord{format})
	if err != nil {
		return err
	}
	_, err = s.Commit(ctx, store.Txn{If: []store.Compare{{Key: formatKey}}, Then: []store.Change{{Key: formatKey, Value: data}}})
	if !errors.Is(err, store.ErrConflict) {
		return err
	}
	it, err := s.Get(ctx, formatKey)
	if err != nil {
		return err
	}
	return checkFormat("etcd under "+s.prefix, it.Value)
}
