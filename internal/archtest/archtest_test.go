// Package archtest holds the rules of ARCHITECTURE.md that a machine can check. Every failure says why the rule exists.
package archtest

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/starpatch/starpatch/"

// root is the repository, seen from this package's folder.
const root = "../.."

// core lists the packages that decide and touch nothing, with what they may import besides the standard library.
// Lower ones come first: a package may import those above it in this list only.
var core = []struct {
	pkg  string
	libs []string
}{
	{"problem", nil},
	{"internal/rpm", nil},
	{"alarm", nil},
	{"host", nil},
	{"patch", nil},
	{"patch/patchfile", []string{"github.com/klauspost/pgzip", "github.com/klauspost/compress/gzip", "github.com/klauspost/compress/flate"}},
	{"strategy", nil},
}

// impure are the standard packages whose import would let a core package touch the world.
var impure = []string{"os", "os/exec", "os/signal", "os/user", "net", "net/http", "net/rpc", "log", "log/slog", "math/rand", "math/rand/v2", "syscall", "database/sql", "context", "io/ioutil", "path/filepath"}

// contracts are what adapters may import besides the core: interfaces, wire types and the lowest tools.
var contracts = []string{"api", "internal/store", "internal/journal", "internal/agentlink", "internal/agentlink/linkpb", "internal/agentlink/pki", "internal/durable", "internal/fanout", "internal/version", "internal/repo/repodata", "internal/config", "internal/process", "internal/installer"}

// composers put the parts together: they may import anything but commands.
var composers = []string{"cmd", "internal/lab", "internal/sim", "internal/controllerd", "e2e", "bench"}

type source struct {
	pkg  string // path below the module, "" for the root
	file string
	test bool
	ast  *ast.File
	fset *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "tools" || name == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		if match, err := build.Default.MatchFile(filepath.Dir(path), filepath.Base(path)); err != nil || !match {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		out = append(out, source{pkg: filepath.ToSlash(rel), file: path, test: strings.HasSuffix(path, "_test.go"), ast: f, fset: fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s source) imports() []string {
	var out []string
	for _, i := range s.ast.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func under(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

func coreRank(pkg string) int {
	for i, c := range core {
		if c.pkg == pkg {
			return i
		}
	}
	return -1
}

func isComposer(pkg string) bool {
	return slices.ContainsFunc(composers, func(c string) bool { return under(pkg, c) })
}

func isTestSupport(pkg string) bool {
	last := pkg[strings.LastIndexByte(pkg, '/')+1:]
	return strings.HasSuffix(last, "test") && last != "archtest" || last == "rpmmake"
}

func TestCoreDecidesAndTouchesNothing(t *testing.T) {
	for _, s := range sources(t) {
		rank := coreRank(s.pkg)
		if rank < 0 || s.test {
			continue
		}
		for _, imp := range s.imports() {
			if slices.Contains(impure, imp) {
				t.Errorf("%s imports %s: a core package takes values and io interfaces and returns values, so that every decision can be tested, simulated and replayed", s.file, imp)
			}
			if in, ok := strings.CutPrefix(imp, module); ok {
				if r := coreRank(in); r < 0 || r >= rank {
					t.Errorf("%s imports %s: core packages import each other downwards only", s.file, in)
				}
				continue
			}
			if strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") && !slices.Contains(core[rank].libs, imp) {
				t.Errorf("%s imports %s: libraries of the core are listed in archtest, each weighed", s.file, imp)
			}
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a core package starts no goroutine: its caller decides what runs beside what", s.fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Sleep" || n.Sel.Name == "After") {
					t.Errorf("%s: a core package takes the time as a value", s.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestAdaptersDoNotKnowEachOther(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !under(s.pkg, "internal") || coreRank(s.pkg) >= 0 || isComposer(s.pkg) || isTestSupport(s.pkg) {
			continue
		}
		for _, imp := range s.imports() {
			in, ok := strings.CutPrefix(imp, module)
			if !ok || coreRank(in) >= 0 || slices.Contains(contracts, in) || under(in, s.pkg) || under(s.pkg, in) {
				continue
			}
			if s.pkg == "internal/repo" && in == "internal/feed" || s.pkg == "internal/swpatch" && (in == "client" || in == "internal/cli") {
				continue
			}
			t.Errorf("%s imports %s: an adapter declares the few methods that it calls and gets the other passed in by cmd, so that each can be replaced and tested alone", s.file, in)
		}
	}
}

func TestOnlyTheStorePackageKnowsEtcd(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range s.imports() {
			if strings.HasPrefix(imp, "go.etcd.io/") && !under(s.pkg, "internal/store/etcd") {
				t.Errorf("%s imports %s: the state engine is behind internal/store and nowhere else", s.file, imp)
			}
		}
	}
}

func TestTheClientKnowsOnlyTheAPI(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !under(s.pkg, "client") && !under(s.pkg, "internal/console") {
			continue
		}
		for _, imp := range s.imports() {
			if in, ok := strings.CutPrefix(imp, module); ok && in != "api" && in != "problem" {
				t.Errorf("%s imports %s: a client sees what any outside client sees", s.file, in)
			}
		}
	}
}

func TestCommandLinesAreSmall(t *testing.T) {
	heavy := []string{"internal/store/etcd", "internal/controller", "internal/server", "internal/agent", "internal/agentlink"}
	for _, s := range sources(t) {
		if s.test || s.pkg != "cmd/sw-patch" && s.pkg != "internal/swpatch" && s.pkg != "internal/cli" && s.pkg != "client" {
			continue
		}
		for _, imp := range s.imports() {
			if in, ok := strings.CutPrefix(imp, module); ok && slices.Contains(heavy, in) {
				t.Errorf("%s imports %s: a command line starts in milliseconds because it does not link the controller", s.file, in)
			}
		}
	}
}

func TestNothingImportsCommands(t *testing.T) {
	for _, s := range sources(t) {
		for _, imp := range s.imports() {
			in, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if under(in, "cmd") {
				t.Errorf("%s imports %s: a command is wiring; what others need belongs to a package", s.file, in)
			}
			if s.test || isTestSupport(s.pkg) {
				continue
			}
			lab := under(in, "internal/lab") || under(in, "internal/sim") || isTestSupport(in)
			may := under(s.pkg, "cmd/patch-lab") || under(s.pkg, "cmd/patch-sim") || under(s.pkg, "internal/lab") || under(s.pkg, "internal/sim") || under(s.pkg, "bench") || under(s.pkg, "e2e")
			if lab && !may {
				t.Errorf("%s imports %s: fakes, the lab and the simulator stay out of what operators run", s.file, in)
			}
		}
	}
}

func TestOnlyDurableRenames(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || under(s.pkg, "internal/durable") {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" && sel.Sel.Name == "Rename" {
					t.Errorf("%s renames by itself: internal/durable makes a file visible whole and durable, in one place", s.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestHouseRules(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		if _, ok := documented[s.pkg]; !ok {
			documented[s.pkg] = false
		}
		if s.ast.Doc != nil {
			documented[s.pkg] = true
		}
		if n := s.ast.Name.Name; slices.Contains([]string{"util", "utils", "common", "types", "models", "manager", "helpers", "misc"}, n) {
			t.Errorf("%s: package %s says nothing; name the thing it knows", s.file, n)
		}
		for _, d := range s.ast.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" && !strings.HasSuffix(s.file, ".pb.go") {
				t.Errorf("%s: no init: what runs, main starts", s.fset.Position(f.Pos()))
			}
		}
	}
	for pkg, ok := range documented {
		if !ok {
			t.Errorf("package %s has no package comment: say what it is for and what it does not do", pkg)
		}
	}
}

func TestNoFileOverOneMiB(t *testing.T) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "bin" || name == "node_modules" {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if os.IsNotExist(err) {
			return nil // another test's temporary file
		}
		if err == nil && info.Size() > 1<<20 {
			t.Errorf("%s has %d bytes: large files are made by a command, not kept", path, info.Size())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
