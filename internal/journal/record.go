package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/starpatch/starpatch/problem"
)

// format is the number of the layout of [Record]. A record with a higher one was written by a newer version.
const format = 1

// MaxRecord is the largest record, in bytes of its line.
const MaxRecord = 64 << 10

// genesis stands for the hash before the first record.
var genesis = strings.Repeat("0", 2*sha256.Size)

// Kind is the class of a record: what was asked or observed, in lower-case words such as "upload" or "feed add". Each kind
// is declared by the package that writes it.
type Kind string

// Record is one decision or one observed fact. Its JSON is the line that is stored, exported and hashed: no spaces, the
// fields in this order, the hash last.
type Record struct {
	Format    int             `json:"format"` // set by Commit
	Number    int64           `json:"number"` // from 1, without gaps; set by Commit
	Time      time.Time       `json:"time"`   // UTC; zero in a Commit: now
	Kind      Kind            `json:"kind"`
	Actor     string          `json:"actor"`               // who asked or reported
	Subject   string          `json:"subject"`             // what about: a host, a patch
	Operation string          `json:"operation,omitempty"` // id, where there is one
	Outcome   string          `json:"outcome"`             // "done", "refused", or what was observed
	Detail    json.RawMessage `json:"detail,omitempty"`    // JSON for later readers; nil: nothing
	Prev      string          `json:"prev"`                // hash of the record before; set by Commit
	Hash      string          `json:"hash,omitempty"`      // see sealed; set by Commit
}

// seal sets the hash and returns the record's line. The hash is the SHA-256, in lower-case hexadecimal, of the line as it
// would be without its last member, so that anybody can check it with sed and sha256sum.
func seal(r *Record) ([]byte, error) {
	r.Format, r.Hash = format, ""
	r.Time = r.Time.Round(0).UTC()
	// What is not text would be stored as something else than it was hashed as.
	r.Actor, r.Subject, r.Operation, r.Outcome = text(r.Actor), text(r.Subject), text(r.Operation), text(r.Outcome)
	if err := r.check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("cannot write a journal record of kind %q: %w", r.Kind, err)
	}
	sum := sha256.Sum256(body)
	r.Hash = hex.EncodeToString(sum[:])
	line := fmt.Appendf(body[:len(body)-1], `,"hash":%q}`, r.Hash)
	if len(line) > MaxRecord {
		return nil, problem.Errorf(problem.TooLarge, "cannot write a journal record of %d bytes about %.80s; at most %d fit", len(line), r.Subject, MaxRecord)
	}
	return line, nil
}

func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func (r *Record) check() error {
	if r.Kind == "" || len(r.Kind) > 40 || strings.Trim(string(r.Kind), "abcdefghijklmnopqrstuvwxyz0123456789- ") != "" {
		return fmt.Errorf("cannot use the journal kind %q: want lower-case words", r.Kind)
	}
	if y := r.Time.Year(); y < 1 || y > 9999 {
		return fmt.Errorf("cannot write a journal record of the year %d", y)
	}
	return nil
}

// parse reads a stored line and checks everything that can be checked without its neighbours: whatever it accepts is
// what seal would write, byte for byte.
func parse(line []byte) (Record, error) {
	if len(line) > MaxRecord {
		return Record{}, fmt.Errorf("a journal record has %d bytes, more than the %d allowed", len(line), MaxRecord)
	}
	var r Record
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		if newer(line) {
			return Record{}, problem.Errorf(problem.NotSupported, "cannot read a journal record of a newer version; this one knows formats up to %d", format)
		}
		return Record{}, fmt.Errorf("cannot read a journal record: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Record{}, fmt.Errorf("cannot read journal record %d: it goes on after its end", r.Number)
	}
	if r.Format > format {
		return Record{}, problem.Errorf(problem.NotSupported, "cannot read journal record %d: it has format %d and this version knows formats up to %d", r.Number, r.Format, format)
	}
	if r.Number < 1 || !isHash(r.Prev) {
		return Record{}, fmt.Errorf("cannot read journal record %d: it has no number or no place in the chain", r.Number)
	}
	again := r
	want, err := seal(&again)
	if err != nil {
		return Record{}, err
	}
	if again.Hash != r.Hash || !bytes.Equal(want, line) {
		return Record{}, fmt.Errorf("journal record %d was changed: its content does not fit its hash", r.Number)
	}
	return r, nil
}

// newer tells whether the line names a format that this version does not know.
func newer(line []byte) bool {
	var r struct {
		Format int `json:"format"`
	}
	return json.Unmarshal(line, &r) == nil && r.Format > format
}

func isHash(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}
