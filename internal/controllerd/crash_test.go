package controllerd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/starpatch/starpatch/api"
	"github.com/starpatch/starpatch/client"
	"github.com/starpatch/starpatch/internal/controllerd"
	"github.com/starpatch/starpatch/internal/store"
	"github.com/starpatch/starpatch/internal/store/storetest"
	"github.com/starpatch/starpatch/problem"
)

// victimEnv makes this test binary a controller. Its value is the configuration file, the save that it does not survive
// (0: it survives all), and whether it dies before or after it.
const victimEnv = "STARPATCH_TEST_VICTIM"

// victim is the main function of that controller. It says "ready" on its standard output.
func victim() int {
	var path, when string
	var at int
	if _, err := fmt.Sscanf(os.Getenv(victimEnv), "%d %s %s", &at, &when, &path); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg, err := controllerd.LoadConfig(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	die := func(moment string) func(int) {
		return func(n int) {
			fmt.Printf("%s %d\n", moment, n)
			if n == at && moment == when {
				if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
					panic(err)
				}
				select {} // the signal is on its way
			}
		}
	}
	d := &controllerd.Daemon{Config: cfg, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Ready: func() { fmt.Println("ready") },
		Wrap: func(s store.Store) store.Store {
			c := storetest.NewCrash(s, 0, storetest.BeforeSave)
			c.Before, c.After = die("before"), die("after")
			return c
		}}
	if err := d.Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// process is a controller in a process of its own.
type process struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner
	saves int // counted after the end
}

// spawn starts a victim and waits until it is ready; nil if it died before.
func (s *site) spawn(at int, when string) *process {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d %s %s", victimEnv, at, when, s.config))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	p := &process{cmd: cmd, lines: bufio.NewScanner(out)}
	for p.lines.Scan() {
		p.count()
		if p.lines.Text() == "ready" {
			return p
		}
	}
	p.end(s.t)
	return nil
}

func (p *process) count() {
	if strings.HasPrefix(p.lines.Text(), "before ") {
		p.saves++
	}
}

// kill ends the process without a word and counts what it saved.
func (p *process) kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	p.end(t)
}

func (p *process) end(t testing.TB) {
	t.Helper()
	for p.lines.Scan() {
		p.count()
	}
	if err := p.cmd.Wait(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Fatal(err)
		}
	}
}

// end is what a site looks like from outside and on disk.
type end struct {
	Query    api.Query
	Revision int64
	Blobs    []string
	Updates  []string
	Repomd   string
}

// story uploads, applies and removes, on a controller that dies at one save, and returns the end and how many saves there
// were without a death.
func story(t *testing.T, at int, when string) (end, int) {
	s := newSite(t)
	s.halt()
	p := s.spawn(at, when)
	saves := 0
	// again repeats a request until it is answered, on a new process when the old one has died.
	again := func(what string, ask func(c *client.Client) (api.Messages, error)) {
		t.Helper()
		for try := 0; ; try++ {
			if p != nil {
				m, err := ask(s.client)
				if err == nil && m.Error == "" {
					return
				}
				if err == nil || problem.KindOf(err) != problem.Unavailable || try > 1 {
					t.Fatalf("%s, death %s save %d: %v %s", what, when, at, err, m.Error)
				}
				p.kill(t)
			}
			s.client.CloseIdle()
			if p = s.spawn(0, "never"); p == nil {
				t.Fatalf("%s: the controller does not come back", what)
			}
		}
	}
	upload := func(n string) {
		t.Helper()
		path := filepath.Join(vectors, "patches", "PEER_19.09_PATCH_"+n+".patch")
		again("upload "+n, func(c *client.Client) (api.Messages, error) {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close() // only read from
			return c.Upload(t.Context(), path, f, nil)
		})
	}
	upload("0001")
	upload("0003")
	again("apply", func(c *client.Client) (api.Messages, error) {
		return c.Apply(t.Context(), []string{"PEER_19.09_PATCH_0001", "PEER_19.09_PATCH_0003"}, client.ApplyOptions{})
	})
	again("remove", func(c *client.Client) (api.Messages, error) {
		return c.Remove(t.Context(), []string{"PEER_19.09_PATCH_0003"}, client.RemoveOptions{})
	})
	check, err := s.client.VerifyJournal(t.Context())
	if err != nil {
		t.Errorf("death %s save %d: %v", when, at, err)
	}
	if check.Records == 0 {
		t.Error("the journal is empty")
	}
	p.kill(t)
	saves = p.saves
	// What the last process had no time to tidy up, the next start does.
	s.client.CloseIdle()
	s.start()
	q, err := s.client.Query(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := end{Query: q, Revision: st.Releases[0].Revision, Repomd: st.Releases[0].Repomd, Blobs: s.tree("blobs"), Updates: s.tree("updates")}
	s.client.CloseIdle()
	s.halt()
	return e, saves
}

// TestKilledAtAnySaveTheControllerComesToTheSameEnd kills a real controller before and after each save of uploads, an
// apply and a remove. Nothing that was acknowledged is lost, what was not can be asked for again, and nothing is left over.
func TestKilledAtAnySaveTheControllerComesToTheSameEnd(t *testing.T) {
	want, saves := story(t, 0, "never")
	if saves != 4 {
		t.Errorf("the story has %d saves; one for each of its four requests was expected", saves)
	}
	if b, err := json.Marshal(want.Query); err != nil || !strings.Contains(string(b), `"Applied"`) {
		t.Errorf("the clean run did not apply: %s %v", b, err)
	}
	for n := 1; n <= saves; n++ {
		for _, when := range []string{"before", "after"} {
			t.Run(fmt.Sprintf("%s save %d", when, n), func(t *testing.T) {
				t.Parallel()
				got, _ := story(t, n, when)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("another end (-clean +killed):\n%s", diff)
				}
			})
		}
	}
}
