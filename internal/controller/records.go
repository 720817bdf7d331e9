package controller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/host"
	"github.com/starpatch/starpatch/internal/agentlink"
	"github.com/starpatch/starpatch/internal/rpm"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/patch"
	"github.com/starpatch/starpatch/problem"
)

// recordFormat is the format number of every record that this version writes. A greater one was written by a newer
// version, which alone can read it.
const recordFormat = 1

// Where records lie in the store.
const (
	patchPrefix     = "patches/"
	releasePrefix   = "releases/"
	hostPrefix      = "hosts/"
	desiredPrefix   = "desired/"
	operationPrefix = "operations/"
	outputPrefix    = "outputs/"
	tokenPrefix     = "tokens/"
	certPrefix      = "certificates/"
)

// patchRecord is patches/<id>. Where the repository holds the patch is not in it but in its release's record, so that
// applying any number of patches changes one record.
type patchRecord struct {
	Format int         `json:"format"`
	Patch  patch.Patch `json:"patch"`
	Former []string    `json:"former_xml,omitempty"` // SHA-256 of metadata that a re-import replaced, oldest first
}

// releaseRecord is releases/<release>: the generation of its update repository that every host should follow, and the
// patches that an apply or remove ever concerned.
type releaseRecord struct {
	Format   int                `json:"format"`
	Release  string             `json:"release"`
	Revision int64              `json:"revision"`
	Repomd   string             `json:"repomd_sha256"`
	Repodata map[string]string  `json:"repodata,omitempty"` // file below the generation to the SHA-256 of its blob
	Placed   map[patch.ID]place `json:"placed,omitempty"`   // patches that are not listed are Available and were never applied
	Gone     []string           `json:"gone,omitempty"`     // [E:]name-version-release.arch.rpm of deleted patches that had been applied, sorted
}

// place is where the repository holds a patch, since which generation.
type place struct {
	State   patch.RepoState `json:"state"`
	Changed int64           `json:"changed"`
}

// hostRecord is hosts/<name>.
type hostRecord struct {
	Format int       `json:"format"`
	Host   host.Host `json:"host"`
}

// desiredRecord is desired/<host>: what a host should do besides following the generation of its release.
type desiredRecord struct {
	Format    int        `json:"format"`
	Host      string     `json:"host"`
	Release   string     `json:"release"`
	Base      uint64     `json:"base,omitempty"`      // added to store revisions to make epochs; grows when an agent knows a later epoch than a restored store
	Operation *operation `json:"operation,omitempty"` // the one that is not final
}

// operation is an installation under way.
type operation struct {
	ID            string `json:"id"`
	Kind          string `json:"kind"`
	Force         bool   `json:"force,omitempty"`
	InServiceOnly bool   `json:"in_service_only,omitempty"` // nothing that is pending needs a reboot: allowed while unlocked
}

// operationRecord is operations/<id>. The version in it is not saved: it is the revision of the record itself.
type operationRecord struct {
	Format    int           `json:"format"`
	Operation api.Operation `json:"operation"`
}

// outputRecord is outputs/<operation id>: the tail of what its tools printed.
type outputRecord struct {
	Format int    `json:"format"`
	Host   string `json:"host"`
	Output string `json:"output"`
}

// tokenRecord is tokens/<id>: a join token without its secret.
type tokenRecord struct {
	Format int                   `json:"format"`
	Token  agentlink.TokenRecord `json:"token"`
}

// certificateRecord is certificates/<host>: what the host's agent proves its name with.
type certificateRecord struct {
	Format  int       `json:"format"`
	Host    string    `json:"host"`
	Serial  string    `json:"serial"`
	Expires time.Time `json:"expires"`
}

// decodeRecord reads one record strictly: an unknown field or a greater format means that a newer version wrote it, and
// guessing would lose what it meant.
func decodeRecord(key string, value []byte, into any) error {
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(value, &head); err != nil {
		return fmt.Errorf("cannot read record %s: %w", key, err)
	}
	if head.Format > recordFormat {
		return problem.Errorf(problem.Invalid, "record %s has format %d, written by a newer version; this version reads up to %d", key, head.Format, recordFormat)
	}
	if head.Format < 1 {
		return fmt.Errorf("cannot read record %s: it has no format number", key)
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("cannot read record %s: %w", key, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("cannot read record %s: something follows its end", key)
	}
	return nil
}

// encodeRecord is the value that decodeRecord reads.
func encodeRecord(key string, record any) ([]byte, error) {
	b, err := json.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("cannot encode record %s: %w", key, err)
	}
	if len(b) > store.MaxValue {
		return nil, problem.Errorf(problem.TooLarge, "record %s would have %d bytes; the store takes at most %d", key, len(b), store.MaxValue)
	}
	return b, nil
}

// loadRecord puts one item of the store into a snapshot under construction. Keys of others (the journal, locks) are passed over.
func (s *snapshot) loadRecord(it store.Item) error {
	prefix, name, _ := strings.Cut(it.Key, "/")
	misplaced := func(got string) error {
		if got == name {
			return nil
		}
		return fmt.Errorf("cannot read record %s: it is of %q", it.Key, got)
	}
	switch prefix + "/" {
	case patchPrefix:
		var r patchRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if _, err := patch.ParseID(name); err != nil {
			return err
		}
		if err := misplaced(string(r.Patch.ID)); err != nil {
			return err
		}
		s.setPatch(r, it.Rev)
	case releasePrefix:
		var r releaseRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if err := misplaced(r.Release); err != nil {
			return err
		}
		for id, p := range r.Placed {
			switch p.State {
			case patch.RepoAvailable, patch.RepoApplied, patch.RepoCommitted:
			default:
				return fmt.Errorf("cannot read record %s: %q is not a repo state of %s", it.Key, p.State, id)
			}
		}
		for _, n := range r.Gone {
			if _, err := rpm.ParseFileName(n); err != nil {
				return fmt.Errorf("cannot read record %s: %w", it.Key, err)
			}
		}
		s.setRelease(r, it.Rev)
	case hostPrefix:
		var r hostRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if err := misplaced(r.Host.Name); err != nil {
			return err
		}
		s.setHost(r.Host, it.Rev)
	case desiredPrefix:
		var r desiredRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if err := misplaced(r.Host); err != nil {
			return err
		}
		s.setDesired(r, it.Rev)
	case operationPrefix:
		var r operationRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if err := misplaced(r.Operation.ID); err != nil {
			return err
		}
		s.setOperation(r.Operation, it.Rev)
	case tokenPrefix:
		var r tokenRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if err := misplaced(r.Token.ID); err != nil {
			return err
		}
		s.setToken(r.Token, it.Rev)
	case certPrefix:
		var r certificateRecord
		if err := decodeRecord(it.Key, it.Value, &r); err != nil {
			return err
		}
		if err := misplaced(r.Host); err != nil {
			return err
		}
		s.setCertificate(r, it.Rev)
	}
	return nil
}
