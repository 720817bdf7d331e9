package journal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/mem"
	"github.com/starpatch/starpatch/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, st store.Store, cfg Config) *Journal {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Controller == "" {
		cfg.Controller = "controller-0"
	}
	j, err := Open(t.Context(), st, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeIt(t, j) })
	return j
}

func closeIt(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

func newStore(t testing.TB) *mem.Store {
	s := mem.New()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func set(key, value string) store.Txn {
	return store.Txn{Then: []store.Change{{Key: key, Value: []byte(value)}}}
}

var upload = Record{Kind: "upload", Actor: "uid 0", Subject: "P1", Outcome: "done"}

func commit(t testing.TB, j *Journal, txn store.Txn, records ...Record) int64 {
	t.Helper()
	rev, err := j.Commit(t.Context(), txn, records...)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func verify(t testing.TB, j *Journal, records int64) {
	t.Helper()
	check, err := j.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if check.Records != records {
		t.Errorf("%d records verified, want %d", check.Records, records)
	}
}

func TestARecordIsSavedWithWhatItExplains(t *testing.T) {
	st := newStore(t)
	j := open(t, st, Config{})
	verify(t, j, 0)
	at := time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("elsewhere", 3600))
	first := Record{Time: at, Kind: "apply", Actor: "uid 0", Subject: "P1", Operation: "op-1", Outcome: "done", Detail: json.RawMessage(`{"a": "<b>"}`)}
	rev := commit(t, j, set("patches/P1", "applied"), first, upload)
	it, err := st.Get(t.Context(), "patches/P1")
	if err != nil || it.Rev != rev {
		t.Errorf("the change: %v, %v; want revision %d", it, err, rev)
	}
	it, err = st.Get(t.Context(), "journal/controller-0/00000000000000000001")
	if err != nil || it.Rev != rev {
		t.Errorf("the record: %v, %v; want the same revision %d", it, err, rev)
	}
	got, err := j.Read(t.Context(), 1, 10)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[1].Time.Location() != time.UTC || time.Since(got[1].Time) < 0 {
		t.Fatalf("read %v, want two records, the second one of now", got)
	}
	first.Format, first.Number, first.Prev = 1, 1, strings.Repeat("0", 64)
	first.Time, first.Detail, first.Hash = at.UTC(), json.RawMessage(`{"a":"\u003cb\u003e"}`), got[0].Hash
	if diff := cmp.Diff(first, got[0]); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	verify(t, j, 2)
	if got, want := j.Head(), (Head{2, got[1].Hash}); got != want {
		t.Errorf("head %v, want %v", got, want)
	}
}

func TestTheHashIsThatOfTheLineWithoutIt(t *testing.T) {
	j := open(t, newStore(t), Config{})
	commit(t, j, store.Txn{}, upload)
	commit(t, j, store.Txn{}, upload)
	var out bytes.Buffer
	if err := j.Export(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	prev := strings.Repeat("0", 64)
	for line := range strings.Lines(out.String()) {
		body, hash, ok := strings.Cut(strings.TrimSuffix(line, "\n"), `,"hash":"`)
		sum := sha256.Sum256([]byte(body + "}"))
		if !ok || hash != hex.EncodeToString(sum[:])+`"}` {
			t.Errorf("line %q does not end with its hash", line)
		}
		if !strings.Contains(body, `"prev":"`+prev+`"`) {
			t.Errorf("line %q does not name the one before, %s", line, prev)
		}
		prev = strings.TrimSuffix(hash, `"}`)
	}
}

func TestAConflictLeavesNeitherChangeNorRecord(t *testing.T) {
	st := newStore(t)
	j := open(t, st, Config{})
	commit(t, j, set("a", "1"), upload)
	txn := set("a", "2")
	txn.If = []store.Compare{{Key: "a"}}
	if _, err := j.Commit(t.Context(), txn, upload); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	verify(t, j, 1)
	if it, err := st.Get(t.Context(), "a"); err != nil || string(it.Value) != "1" {
		t.Errorf("a holds %q, %v", it.Value, err)
	}
}

func TestManyCallersEachGetTheirOwnAnswer(t *testing.T) {
	const callers, rounds = 64, 20
	st := newStore(t)
	counting := &counter{Store: st}
	j := open(t, counting, Config{})
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			key := fmt.Sprintf("own/%d", c)
			rev := int64(0)
			for n := range rounds {
				txn := set(key, fmt.Sprint(n))
				txn.If = []store.Compare{{Key: key, Rev: rev}}
				wrong := n%5 == 4
				if wrong {
					txn.If[0].Rev = rev + 1
				}
				got, err := j.Commit(context.Background(), txn, upload)
				switch {
				case wrong && !errors.Is(err, store.ErrConflict):
					t.Errorf("caller %d round %d: %v, want a conflict", c, n, err)
				case !wrong && err != nil:
					t.Errorf("caller %d round %d: %v", c, n, err)
				case !wrong:
					rev = got
				}
			}
		})
	}
	wg.Wait()
	verify(t, j, callers*rounds*4/5)
	t.Logf("%d requests in %d transactions", callers*rounds, counting.commits)
}

func TestCallersThatWantTheSameKeyAreSerialised(t *testing.T) {
	st := newStore(t)
	j := open(t, st, Config{})
	const callers = 32
	won := make(chan bool, callers)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			txn := set("one", "x")
			txn.If = []store.Compare{{Key: "one"}}
			_, err := j.Commit(context.Background(), txn, upload)
			if err != nil && !errors.Is(err, store.ErrConflict) {
				t.Error(err)
			}
			won <- err == nil
		})
	}
	wg.Wait()
	close(won)
	n := 0
	for w := range won {
		if w {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d callers created the key, want exactly one", n)
	}
	verify(t, j, 1)
}

type counter struct {
	store.Store
	mu      sync.Mutex
	commits int
}

func (c *counter) Commit(ctx context.Context, txn store.Txn) (int64, error) {
	c.mu.Lock()
	c.commits++
	c.mu.Unlock()
	return c.Store.Commit(ctx, txn)
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	j := open(t, newStore(t), Config{})
	many := func(n int) (txn store.Txn) {
		for i := range n {
			txn.Then = append(txn.Then, store.Change{Key: fmt.Sprintf("k%d", i), Value: []byte("x")})
		}
		return txn
	}
	large := upload
	large.Detail = json.RawMessage(`"` + strings.Repeat("x", MaxRecord) + `"`)
	wrong := upload
	wrong.Detail = json.RawMessage(`{`)
	loud := upload
	loud.Kind = "Upload!"
	for _, c := range []struct {
		name    string
		txn     store.Txn
		records []Record
		want    problem.Kind
	}{
		{"a commit without a record", store.Txn{}, nil, problem.Internal},
		{"one change too many", many(store.MaxOps - 1), []Record{upload}, problem.TooLarge},
		{"too large a record", store.Txn{}, []Record{large}, problem.TooLarge},
		{"a detail that is not JSON", store.Txn{}, []Record{wrong}, problem.Internal},
		{"an unreadable kind", store.Txn{}, []Record{loud}, problem.Internal},
		{"a change of the journal itself", set("journal/controller-0/head", "x"), []Record{upload}, problem.Internal},
		{"a malformed key", set("//", "x"), []Record{upload}, problem.Internal},
	} {
		_, err := j.Commit(t.Context(), c.txn, c.records...)
		if err == nil || problem.KindOf(err) != c.want {
			t.Errorf("%s: got %v of kind %q, want kind %q", c.name, err, problem.KindOf(err), c.want)
		}
	}
	commit(t, j, many(store.MaxOps-2), upload)
	verify(t, j, 1)
}

func TestAnEndedContextLeavesNothing(t *testing.T) {
	j := open(t, newStore(t), Config{})
	why := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	_, err := j.Commit(ctx, set("a", "1"), upload)
	if !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

func TestAClosedJournalTurnsCallersAway(t *testing.T) {
	j := open(t, newStore(t), Config{})
	closeIt(t, j)
	if _, err := j.Commit(t.Context(), set("a", "1"), upload); !errors.Is(err, store.ErrClosed) {
		t.Errorf("got %v, want %v", err, store.ErrClosed)
	}
}

func TestTwoProcessesWithOneChainDoNotBreakIt(t *testing.T) {
	st := newStore(t)
	dir := t.TempDir()
	a, b := open(t, st, Config{Dir: dir}), open(t, st, Config{Dir: dir})
	for n := range 20 {
		commit(t, []*Journal{a, b}[n%2], set(fmt.Sprintf("k%d", n), "1"), upload)
	}
	verify(t, b, 20)
}

// fill moves n records through a journal with segments of 10.
func fill(t testing.TB, j *Journal, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		rec := upload
		rec.Subject = fmt.Sprintf("P%d", i)
		commit(t, j, set("last", fmt.Sprint(i)), rec)
	}
}

func TestCompleteSegmentsMoveToFiles(t *testing.T) {
	st := newStore(t)
	dir := t.TempDir()
	cfg := Config{Dir: dir, segment: 10}
	j := open(t, st, cfg)
	fill(t, j, 1, 35)
	closeIt(t, j)
	j = open(t, st, cfg)
	if err := j.moveComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	verify(t, j, 35)
	if items, _, err := st.List(t.Context(), "journal/controller-0/0"); err != nil || len(items) != 5 {
		t.Errorf("%d records left in the store, %v; want 5", len(items), err)
	}
	for _, from := range []int64{1, 7, 10, 11, 30, 31, 35, 36} {
		got, err := j.Read(t.Context(), from, 12)
		if err != nil {
			t.Fatal(err)
		}
		if want := min(12, 36-int(from)); len(got) != want {
			t.Errorf("read %d records from %d, want %d", len(got), from, want)
		}
		for i, r := range got {
			if want := fmt.Sprintf("P%d", from+int64(i)); r.Subject != want {
				t.Errorf("record %d is about %s, want %s", r.Number, r.Subject, want)
			}
		}
	}
	fill(t, j, 36, 5) // the head is in a file now
	closeIt(t, j)
	j = open(t, st, cfg)
	verify(t, j, 40)
}

func TestOldSegmentsAreRetiredBySize(t *testing.T) {
	st := newStore(t)
	cfg := Config{Dir: t.TempDir(), segment: 10}
	j := open(t, st, cfg)
	fill(t, j, 1, 55)
	if err := j.moveComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(j.segmentFile(1))
	if err != nil {
		t.Fatal(err)
	}
	closeIt(t, j)
	cfg.Keep = 2*fi.Size() + fi.Size()/2
	j = open(t, st, cfg)
	if err := j.moveComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	check, err := j.Verify(t.Context())
	if err != nil || check.First != 31 || check.Records != 25 {
		t.Errorf("verified %+v, %v; want 25 records from 31 on", check, err)
	}
	got, err := j.Read(t.Context(), 1, 1)
	if err != nil || len(got) != 1 || got[0].Number != 31 {
		t.Errorf("read from 1: %v, %v; want the oldest that is left", got, err)
	}
}

func TestVerifyNamesWhatIsWrong(t *testing.T) {
	edit := func(key, old, new string) func(t *testing.T, st *mem.Store, dir string) {
		return func(t *testing.T, st *mem.Store, dir string) {
			it, err := st.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			value := strings.Replace(string(it.Value), old, new, 1)
			if value == string(it.Value) {
				t.Fatalf("%s does not contain %s", value, old)
			}
			if _, err := st.Commit(t.Context(), set(key, value)); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := func(change func([]string) []string) func(t *testing.T, st *mem.Store, dir string) {
		return func(t *testing.T, st *mem.Store, dir string) {
			path := filepath.Join(dir, "controller-0", "00000000000000000001.jsonl")
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := change(strings.SplitAfter(string(data), "\n"))
			if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	const key14 = "journal/controller-0/00000000000000000014"
	for _, c := range []struct {
		name string
		harm func(t *testing.T, st *mem.Store, dir string)
		want string
	}{
		{"a changed word", edit(key14, "P14", "P15"), "record 14"},
		{"a changed hash", edit(key14, `"hash":"`, `"hash":"0`), "record 14"},
		{"a removed record", func(t *testing.T, st *mem.Store, dir string) {
			if _, err := st.Commit(t.Context(), store.Txn{Then: []store.Change{{Key: key14}}}); err != nil {
				t.Fatal(err)
			}
		}, "record 14 is missing"},
		{"a record that was made anew", func(t *testing.T, st *mem.Store, dir string) {
			r := upload
			r.Number, r.Prev, r.Time = 14, genesis, time.Now()
			line, err := seal(&r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Commit(t.Context(), set(key14, string(line))); err != nil {
				t.Fatal(err)
			}
		}, "record 14 does not follow"},
		{"a changed head", edit("journal/controller-0/head", `"hash":"`, `"hash":"`+strings.Repeat("0", 64)+`","was":"`), "is not the one that the head names"},
		{"a changed word in a file", file(func(l []string) []string { l[3] = strings.Replace(l[3], "P4", "P5", 1); return l }), "record 4"},
		{"a lost line in a file", file(func(l []string) []string { return append(l[:3], l[4:]...) }), "record 4"},
		{"swapped lines in a file", file(func(l []string) []string { l[3], l[4] = l[4], l[3]; return l }), "record 4"},
		{"a cut file", file(func(l []string) []string { l[9] = l[9][:20]; return l[:10] }), "record 10"},
		{"a file that goes on", file(func(l []string) []string { return append(l, "\n") }), "goes on"},
		{"a lost file", func(t *testing.T, st *mem.Store, dir string) {
			if err := os.Remove(filepath.Join(dir, "controller-0", "00000000000000000001.jsonl")); err != nil {
				t.Fatal(err)
			}
		}, "record 1 is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStore(t)
			cfg := Config{Dir: t.TempDir(), segment: 10}
			j := open(t, st, cfg)
			fill(t, j, 1, 15)
			if err := j.moveComplete(t.Context()); err != nil {
				t.Fatal(err)
			}
			verify(t, j, 15)
			c.harm(t, st, cfg.Dir)
			_, err := j.Verify(t.Context())
			if err == nil { // the head is read at the next start
				_, err = Open(t.Context(), st, Config{Controller: "controller-0", Dir: cfg.Dir, segment: 10})
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestFilesFromTheFutureAreRefused(t *testing.T) {
	st := newStore(t)
	cfg := Config{Controller: "controller-0", Dir: t.TempDir(), segment: 10}
	j := open(t, st, cfg)
	fill(t, j, 1, 10)
	if err := j.moveComplete(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), newStore(t), cfg)
	if problem.KindOf(err) != problem.Conflict {
		t.Errorf("opened with an older store: %v, want a refusal", err)
	}
}

func TestAHeadOfANewerVersionIsRefused(t *testing.T) {
	st := newStore(t)
	if _, err := st.Commit(t.Context(), set("journal/controller-0/head", `{"format":2,"number":1,"hash":"`+genesis+`"}`)); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), st, Config{Controller: "controller-0", Dir: t.TempDir()})
	if problem.KindOf(err) != problem.NotSupported {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestAControllerNameIsNoPath(t *testing.T) {
	for _, name := range []string{"", "a/b", "..", ".hidden"} {
		if _, err := Open(t.Context(), newStore(t), Config{Controller: name, Dir: t.TempDir()}); problem.KindOf(err) != problem.Invalid {
			t.Errorf("%q: got %v, want a refusal", name, err)
		}
	}
}
