package dnf

import (
	"os"
	"path/filepath"
	"testing"
)

// What rpm 4.18 and dnf 4.14 write when a scriptlet fails and the exit code is 0.
func TestFailedScriptletsAreFoundInTheOutput(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, line string }{
		{"rpm, shell", "warning: %postun(a-1-1.noarch) scriptlet failed, exit status 3"},
		{"rpm, Lua", `error: lua script failed: [string "%postun(a-1-1.noarch)"]:1: boom`},
		{"rpm, Lua in a trigger", `error: lua script failed: [string "%triggerin(a-1-1.noarch)"]:1: boom`},
		{"dnf", "Error in POSTIN scriptlet in rpm package a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "output")
			if err := os.WriteFile(path, []byte("Preparing...\n"+c.line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if s, err := digest(f); err != nil || len(s.scriptlets) != 1 || s.scriptlets[0] != c.line {
				t.Errorf("got %q, %v", s.scriptlets, err)
			}
		})
	}
}
