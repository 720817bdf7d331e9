package etcd_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/etcd"
	"github.com/starpatch/starpatch/internal/store/storetest"
	"github.com/starpatch/starpatch/problem"
)

var (
	soak = flag.Bool("soak", false, "run the long proofs")
	seed = flag.Int64("seed", 0, "seed of random tests; 0 takes a new one")
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	flag.Parse()
	if *seed == 0 {
		*seed = time.Now().UnixNano()
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, cfg etcd.Config) *etcd.Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	s, err := etcd.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeIt(t testing.TB, s store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func set(key, value string) store.Txn {
	return store.Txn{Then: []store.Change{{Key: key, Value: []byte(value)}}}
}

func TestStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Compacter { return open(t, etcd.Config{}) })
}

// site is a store over the socket of another, as a site's own etcd would be used.
func site(t testing.TB, socket string) (*etcd.Store, error) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + socket}, DialTimeout: 10 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	return etcd.New(t.Context(), client, "starpatch/", slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func TestASiteEtcdIsTheSameStore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Compacter {
		socket := filepath.Join(t.TempDir(), "private", "etcd")
		server := open(t, etcd.Config{Socket: socket})
		t.Cleanup(func() { closeIt(t, server) })
		s, err := site(t, socket)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestAWatchGoesOnWhenItsEtcdComesBack(t *testing.T) {
	t.Parallel()
	dir, socket := t.TempDir(), filepath.Join(t.TempDir(), "private", "etcd")
	server := open(t, etcd.Config{Dir: dir, Socket: socket})
	s, err := site(t, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer closeIt(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rev, err := s.Commit(ctx, set("a", "0"))
	if err != nil {
		t.Fatal(err)
	}
	events := s.Watch(ctx, "a", rev)
	if rev, err = s.Commit(ctx, set("a", "1")); err != nil {
		t.Fatal(err)
	}
	if b := <-events; b.Rev != rev {
		t.Fatalf("watched %v, want revision %d", b, rev)
	}
	closeIt(t, server)

	short, cancelShort := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancelShort()
	if _, err := s.Commit(short, set("a", "lost")); !errors.Is(err, store.ErrUnknown) {
		t.Errorf("commit without an etcd: %v, want %v", err, store.ErrUnknown)
	}

	server = open(t, etcd.Config{Dir: dir, Socket: socket})
	defer closeIt(t, server)
	rev, err = server.Commit(ctx, set("starpatch/a", "2")) // by somebody else, perhaps before the watch is back
	if err != nil {
		t.Fatal(err)
	}
	for {
		b := <-events
		if b.Err != nil {
			t.Fatal(b.Err)
		}
		if b.Rev == rev {
			break
		}
	}
	if _, err := s.Commit(ctx, set("a", "3")); err != nil {
		t.Errorf("commit after it came back: %v", err)
	}
}

func TestASiteEtcdIsSharedByPrefix(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "private", "etcd")
	server := open(t, etcd.Config{Socket: socket})
	defer closeIt(t, server)
	s, err := site(t, socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), set("a", "1")); err != nil {
		t.Fatal(err)
	}
	closeIt(t, s)
	items, _, err := server.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, it := range items {
		keys = append(keys, it.Key)
	}
	if want := []string{"starpatch/a", "starpatch/format"}; !slices.Equal(keys, want) {
		t.Errorf("keys %v, want %v", keys, want)
	}
	if _, err := server.Commit(t.Context(), set("starpatch/format", `{"format":2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := site(t, socket); problem.KindOf(err) != problem.NotSupported || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("data of a newer version: %v, want a refusal", err)
	}
}

func TestARestartKeepsEverything(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, etcd.Config{Dir: dir})
	rev, err := s.Commit(t.Context(), set("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	closeIt(t, s)
	s = open(t, etcd.Config{Dir: dir})
	defer closeIt(t, s)
	if it, err := s.Get(t.Context(), "a"); err != nil || string(it.Value) != "1" || it.Rev != rev {
		t.Errorf("got %v, %v; want the value and its revision %d", it, err, rev)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if b := <-s.Watch(ctx, "a", rev-1); len(b.Events) != 1 || b.Rev != rev {
		t.Errorf("watched %v, want the commit from before the restart", b)
	}
}

func TestAFolderHasOneProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, etcd.Config{Dir: dir})
	_, err := etcd.Open(t.Context(), etcd.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if problem.KindOf(err) != problem.Conflict || !strings.Contains(err.Error(), dir) {
		t.Errorf("opened twice: %v, want a refusal that names the folder", err)
	}
	closeIt(t, s)
	closeIt(t, open(t, etcd.Config{Dir: dir}))
}

func TestDataOfANewerVersionIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	closeIt(t, open(t, etcd.Config{Dir: dir}))
	for content, want := range map[string]problem.Kind{`{"format":2,"more":true}`: problem.NotSupported, `{}`: problem.Internal, ``: problem.Internal} {
		if err := os.WriteFile(filepath.Join(dir, "format.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := etcd.Open(t.Context(), etcd.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
		if err == nil || problem.KindOf(err) != want {
			t.Errorf("format file %q: %v, want a refusal of kind %q", content, err, want)
		}
	}
}

// sockets lists the sockets of this process that listen: of TCP, and unix ones with a name, abstract ones included.
func sockets(t *testing.T) []string {
	t.Helper()
	mine := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil { // the folder's own is closed by now
			if inode, ok := strings.CutPrefix(link, "socket:["); ok {
				mine[strings.TrimSuffix(inode, "]")] = true
			}
		}
	}
	var out []string
	for _, table := range []struct {
		path               string
		inode, state, name int
		listening          string
	}{
		{"/proc/self/net/unix", 6, 3, 7, "00010000"},
		{"/proc/self/net/tcp", 9, 3, 1, "0A"},
		{"/proc/self/net/tcp6", 9, 3, 1, "0A"},
	} {
		data, err := os.ReadFile(table.path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			f := strings.Fields(line)
			if len(f) > table.inode && mine[f[table.inode]] && f[table.state] == table.listening {
				out = append(out, f[min(table.name, len(f)-1)])
			}
		}
	}
	return out
}

func TestNothingListensUnlessAsked(t *testing.T) {
	before := sockets(t)
	s := open(t, etcd.Config{})
	if got := sockets(t); !slices.Equal(got, before) {
		t.Errorf("listening sockets %v, want no new ones beside %v", got, before)
	}
	closeIt(t, s)

	socket := filepath.Join(t.TempDir(), "private", "etcd")
	s = open(t, etcd.Config{Socket: socket})
	defer closeIt(t, s)
	if got, want := sockets(t), append(before, socket); !slices.Equal(got, want) {
		t.Errorf("listening sockets %v, want %v", got, want)
	}
	if fi, err := os.Stat(filepath.Dir(socket)); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode %v of the socket's folder, %v; want that nobody else gets in", fi.Mode(), err)
	}
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestASocketThatOthersCanReachIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := etcd.Open(t.Context(), etcd.Config{Dir: t.TempDir(), Socket: filepath.Join(dir, "etcd"), Log: slog.New(slog.DiscardHandler)})
	if problem.KindOf(err) != problem.Invalid {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestAFullStoreSaysSoAndRecovers(t *testing.T) {
	t.Parallel()
	s := open(t, etcd.Config{Quota: 8 << 20, Log: slog.New(slog.DiscardHandler)})
	defer closeIt(t, s)
	space, err := s.Space(t.Context())
	if err != nil || space.Refused || space.Quota != 8<<20 {
		t.Fatalf("space %+v, %v", space, err)
	}
	value := make([]byte, 512<<10)
	var full error
	n := 0
	for ; full == nil && n < 100; n++ {
		_, full = s.Commit(t.Context(), store.Txn{Then: []store.Change{{Key: fmt.Sprintf("fill/%d", n), Value: value}}})
	}
	if !errors.Is(full, store.ErrNoSpace) || errors.Is(full, store.ErrUnknown) {
		t.Fatalf("after %d MiB: %v, want %v and nothing else", n/2, full, store.ErrNoSpace)
	}
	if _, err := s.Commit(t.Context(), set("small", "1")); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("a small commit: %v, want %v", err, store.ErrNoSpace)
	}
	if space, err := s.Space(t.Context()); err != nil || !space.Refused {
		t.Errorf("space %+v, %v; want that commits are refused", space, err)
	}
	if _, err := s.Get(t.Context(), "fill/0"); err != nil {
		t.Errorf("reading: %v", err)
	}
	var txn store.Txn
	for i := range n - 1 {
		txn.Then = append(txn.Then, store.Change{Key: fmt.Sprintf("fill/%d", i)})
	}
	if _, err := s.Commit(t.Context(), txn); err != nil {
		t.Errorf("deleting: %v", err)
	}
	if err := s.Reclaim(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), set("small", "1")); err != nil {
		t.Errorf("after room was made: %v", err)
	}
	if space, err := s.Space(t.Context()); err != nil || space.Refused || space.Bytes > 4<<20 {
		t.Errorf("space %+v, %v; want a small file", space, err)
	}
}

func TestACancelledStartLeavesNothingRunning(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err := etcd.Open(ctx, etcd.Config{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}); err == nil {
		closeIt(t, s) // it may have been ready at once
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the cause", err)
	}
}

func BenchmarkStore(b *testing.B) {
	storetest.Bench(b, func(b *testing.B) storetest.Compacter { return open(b, etcd.Config{}) })
}

// BenchmarkOpen is start to ready, of an empty folder and of one with 10,000 keys.
func BenchmarkOpen(b *testing.B) {
	b.Run("empty", func(b *testing.B) {
		for b.Loop() {
			s := open(b, etcd.Config{})
			b.StopTimer()
			closeIt(b, s)
			b.StartTimer()
		}
	})
	b.Run("10,000 keys", func(b *testing.B) {
		dir := b.TempDir()
		s := open(b, etcd.Config{Dir: dir})
		for i := 0; i < 10000; i += 100 {
			var txn store.Txn
			for j := i; j < i+100; j++ {
				txn.Then = append(txn.Then, store.Change{Key: fmt.Sprintf("k%d", j), Value: make([]byte, 512)})
			}
			if _, err := s.Commit(b.Context(), txn); err != nil {
				b.Fatal(err)
			}
		}
		closeIt(b, s)
		for b.Loop() {
			s := open(b, etcd.Config{Dir: dir})
			b.StopTimer()
			closeIt(b, s)
			b.StartTimer()
		}
	})
}
