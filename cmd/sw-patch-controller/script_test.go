package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sw-patch-controller": main,
	})
}

// addresses gives every script's controller one of its own.
var addresses atomic.Int32

// TestScripts runs what an operator types, against the real program. The command "start" runs a controller with
// controller.yaml until the script ends or says "stop".
func TestScripts(t *testing.T) {
	vectors, err := filepath.Abs("../../patch/patchfile/testdata/vectors")
	if err != nil {
		t.Fatal(err)
	}
	type key struct{}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "swc") // short: socket paths are limited
			if err != nil {
				return err
			}
			c := &running{}
			env.Values[key{}] = c
			env.Defer(func() {
				c.stop()
				if err := os.RemoveAll(dir); err != nil {
					env.T().Fatal(err)
				}
			})
			pid := os.Getpid()
			env.Setenv("VECTORS", vectors)
			env.Setenv("SITE", dir)
			env.Setenv("ADDRESS", fmt.Sprintf("127.%d.%d.%d", 132+pid/250%60, pid%250, addresses.Add(1)))
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(ts.Value(key{}).(*running).start(ts.MkAbs("controller.yaml")))
			},
			"stop": func(ts *testscript.TestScript, neg bool, args []string) {
				if code := ts.Value(key{}).(*running).stop(); code != 0 {
					ts.Fatalf("the controller ended with %d", code)
				}
			},
			"expand": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
			},
		},
	})
}

// running is the controller of one script, run as main does.
type running struct {
	cancel context.CancelFunc
	ended  chan int
}

func (r *running) start(config string) error {
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()                   // only read from; the other end is closed by the controller
	fd, err := unix.Dup(int(out.Fd())) // owned by the controller from now on
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.ended = cancel, make(chan int, 1)
	go func() {
		code := run(ctx, []string{"--config", config, "--ready-fd", strconv.Itoa(fd)}, os.Getenv, io.Discard, io.Discard)
		r.ended <- code
	}()
	ready := make(chan string, 1)
	go func() {
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil {
			line = err.Error()
		}
		ready <- line
	}()
	select {
	case line := <-ready:
		if line != "ready\n" {
			return fmt.Errorf("the controller said %q", line)
		}
		return nil
	case code := <-r.ended:
		r.cancel = nil
		cancel()
		return fmt.Errorf("the controller ended with %d", code)
	}
}

// stop ends the controller, if it runs, and returns its exit code.
func (r *running) stop() int {
	if r.cancel == nil {
		return 0
	}
	r.cancel()
	r.cancel = nil
	return <-r.ended
}
