package etcd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/starpatch/starpatch/internal/journal"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/etcd"
)

// childDir names the folder of the child process that the kill tests run: this test binary, started again.
const childDir = "STARPATCH_TEST_CHILD_DIR"

const writers = 16

// child commits through a journal from many goroutines, each counting in its own key, and prints "<writer> <number>" for
// every commit that was acknowledged. It ends by being killed.
func child(dir string) {
	err := func() error {
		ctx := context.Background()
		s, j, err := openBoth(ctx, dir, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		if err != nil {
			return err
		}
		var mu sync.Mutex
		out := bufio.NewWriter(os.Stdout)
		errs := make(chan error)
		for w := range writers {
			go func() {
				errs <- func() error {
					n, rev, err := counted(ctx, s, w)
					for err == nil {
						n++
						rev, err = j.Commit(ctx, store.Txn{
							If:   []store.Compare{{Key: counterKey(w), Rev: rev}},
							Then: []store.Change{{Key: counterKey(w), Value: fmt.Append(nil, n)}},
						}, journal.Record{Kind: "count", Subject: counterKey(w), Outcome: fmt.Sprint(n)})
						if err == nil {
							mu.Lock()
							_, err = fmt.Fprintln(out, w, n)
							err = errors.Join(err, out.Flush())
							mu.Unlock()
						}
					}
					return err
				}()
			}()
		}
		return <-errs
	}()
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func counterKey(w int) string { return fmt.Sprintf("count/%02d", w) }

func counted(ctx context.Context, s store.Store, w int) (n int, rev int64, err error) {
	it, err := s.Get(ctx, counterKey(w))
	if errors.Is(err, store.ErrNotFound) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	n, err = strconv.Atoi(string(it.Value))
	return n, it.Rev, err
}

func openBoth(ctx context.Context, dir string, log *slog.Logger) (*etcd.Store, *journal.Journal, error) {
	s, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(dir, "state"), Log: log})
	if err != nil {
		return nil, nil, err
	}
	j, err := journal.Open(ctx, s, journal.Config{Controller: "controller-0", Dir: filepath.Join(dir, "journal"), Log: log})
	if err != nil {
		return nil, nil, errors.Join(err, s.Close())
	}
	return s, j, nil
}

// running is a child with what it has acknowledged so far.
type running struct {
	cmd    *exec.Cmd
	scan   *bufio.Scanner
	acked  map[int]int
	stderr strings.Builder
}

func start(t *testing.T, dir string, acked map[int]int) *running {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &running{cmd: exec.CommandContext(t.Context(), exe), acked: acked}
	r.cmd.Env = append(os.Environ(), childDir+"="+dir)
	r.cmd.Stderr = &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.scan = bufio.NewScanner(out)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// read takes n acknowledgements, or all that are left with n < 0.
func (r *running) read(t *testing.T, n int) {
	t.Helper()
	for ; n != 0 && r.scan.Scan(); n-- {
		var w, v int
		if _, err := fmt.Sscan(r.scan.Text(), &w, &v); err != nil {
			continue // the line that the kill cut off: not acknowledged to anybody
		}
		r.acked[w] = max(r.acked[w], v)
	}
	if n > 0 {
		t.Fatalf("the child ended by itself: %s", &r.stderr)
	}
}

// freeze stops every thread of the child at once, as a power cut does, and returns when they stand still.
func (r *running) freeze(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for {
		err := unix.Waitid(unix.P_PID, r.cmd.Process.Pid, nil, unix.WSTOPPED, nil)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EINTR) {
			t.Fatalf("waiting for the child to stop: %v", err)
		}
	}
}

func (r *running) kill(t *testing.T) {
	t.Helper()
	if err := r.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	r.read(t, -1) // what was on its way to us counts as acknowledged
	var exit *exec.ExitError
	if err := r.cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("killed child: %v", err)
	}
}

// check opens what a child left behind and compares it with what it acknowledged.
func check(t *testing.T, dir string, acked map[int]int) {
	t.Helper()
	begin := time.Now()
	s, j, err := openBoth(t.Context(), dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ready := time.Since(begin)
	defer func() {
		if err := errors.Join(j.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}()
	total := int64(0)
	for w := range writers {
		n, _, err := counted(t.Context(), s, w)
		if err != nil {
			t.Fatal(err)
		}
		if n < acked[w] || n > acked[w]+1 {
			t.Errorf("writer %d is at %d, but %d was acknowledged", w, n, acked[w])
		}
		acked[w] = n
		total += int64(n)
	}
	result, err := j.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if result.Records != total {
		t.Errorf("%d records explain %d commits", result.Records, total)
	}
	t.Logf("%d commits kept, ready after %v", total, ready.Round(time.Millisecond))
}

func TestSoakAKilledProcessLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	rounds := 3
	if *soak {
		rounds = 100
	}
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(uint64(*seed), 0))
	dir := t.TempDir()
	acked := map[int]int{}
	for range rounds {
		c := start(t, dir, acked)
		c.read(t, 1+random.IntN(2000))
		c.kill(t)
		check(t, dir, acked)
	}
}
