// Package buildtooltest runs the scripts of patch_build, query_patch and modify_patch against the real tools.
package buildtooltest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/starpatch/starpatch/internal/buildtool"
	"github.com/starpatch/starpatch/internal/rpmmake"
	"github.com/starpatch/starpatch/internal/trust"
)

// Main is the TestMain of a tool's package: inside scripts, the three tools are commands, and so is
// mkrpm NAME [EPOCH:]VERSION-RELEASE [ARCH [SUMMARY]], which makes a package in the present folder.
func Main(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"patch_build":  tool(buildtool.Build),
		"query_patch":  tool(buildtool.Query),
		"modify_patch": tool(buildtool.Modify),
		"mkrpm":        mkrpm,
	})
}

func tool(run func(context.Context, buildtool.Env) int) func() {
	return func() {
		os.Exit(run(context.Background(), buildtool.Env{
			Args: os.Args[1:], Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now, LoadTrust: trust.Load,
		}))
	}
}

func mkrpm() {
	spec := rpmmake.Spec{Name: os.Args[1], EVR: rpmmake.EVR(os.Args[2])}
	if len(os.Args) > 3 {
		spec.Arch = os.Args[3]
	}
	if len(os.Args) > 4 {
		spec.Summary = os.Args[4]
	}
	if _, err := spec.WriteTo("."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// Run runs testdata/script/*.txtar. $KEYS and $PATCHES are the folders of the format's test vectors, $TRUST a trust folder
// with their formal and dev keys. TestUpdate rewrites expectations with -update.
func Run(t *testing.T, update bool) {
	vectors, err := filepath.Abs("../../patch/patchfile/testdata/vectors")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("KEYS", filepath.Join(vectors, "keys"))
			e.Setenv("PATCHES", filepath.Join(vectors, "patches"))
			e.Setenv("BAD", filepath.Join(vectors, "bad"))
			e.Setenv("TRUST", filepath.Join(e.WorkDir, "trust"))
			for _, class := range []string{"formal", "dev"} {
				dir := filepath.Join(e.WorkDir, "trust", class)
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return err
				}
				pem, err := os.ReadFile(filepath.Join(vectors, "keys", class+"-cert.pem"))
				if err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, "key.pem"), pem, 0o644); err != nil {
					return err
				}
			}
			return nil
		},
	})
}
