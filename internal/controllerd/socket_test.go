package controllerd

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/starpatch/starpatch/problem"
)

func TestNoUserTakesTheWholeSocket(t *testing.T) {
	for _, tt := range []struct {
		name string
		uid  uint32
		most int
	}{{"a user has a share", 1000, maxPerUser}, {"root has what root needs", 0, maxPerUser + 1}} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := listenSocket(filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			l.(*fair).uid = func(net.Conn) (uint32, bool) { return tt.uid, true }
			accepted := make(chan net.Conn)
			go func() {
				defer close(accepted)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					accepted <- c
				}
			}()
			dial := func() net.Conn {
				c, err := net.Dial("unix", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
			var first net.Conn
			for i := range tt.most {
				dial()
				if c := <-accepted; i == 0 {
					first = c
				} else {
					t.Cleanup(func() { c.Close() })
				}
			}
			if tt.uid != 0 {
				if _, err := dial().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
					t.Errorf("one too many: got %v, want that it is closed", err)
				}
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			dial()
			if err := (<-accepted).Close(); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			for range accepted {
				t.Error("somebody came in after the end")
			}
		})
	}
}

func TestTheSocketReplacesOnlySockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenSocket(path); problem.KindOf(err) != problem.Conflict {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
