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
	"regexp"
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
	{"host", nil},
	{"patch", nil},
	{"patch/patchfile", []string{"github.com/klauspost/pgzip", "github.com/klauspost/compress/gzip", "github.com/klauspost/compress/flate"}},
}

// impure are the standard packages whose import would let a core package touch the world.
var impure = []string{"os", "os/exec", "os/signal", "os/user", "net", "net/http", "net/rpc", "log", "log/slog", "math/rand", "math/rand/v2", "syscall", "database/sql", "context", "io/ioutil", "path/filepath"}

// contracts are what adapters may import besides the core: interfaces, wire types and the lowest tools.
var contracts = []string{
	"api", "internal/agentlink", "internal/installer", "internal/store",
	"internal/durable", "internal/fanout", "internal/process", "internal/repo/repodata", "internal/version",
}

// composers put the parts together: they may import any adapter.
var composers = []string{"internal/controllerd", "internal/lab"}

// pairs are two adapters of which the first may import the second: a command is one call of the client, and all command
// lines print alike.
var pairs = []string{"internal/swpatch client", "internal/swpatch internal/cli"}

// keepers are the types that may hold a context: io.Reader and io.Writer have no parameter for one, a request takes its
// caller's along on a channel, and two end what they started.
var keepers = []string{
	"internal/buildtool ctxReader", "internal/buildtool ctxWriter", "internal/controller interruptible",
	"internal/controller request", "internal/agentlink service", "internal/store/etcd Store",
}

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
				if isSelector(n, "time", "Now") || isSelector(n, "time", "After") || isSelector(n, "time", "NewTimer") {
					t.Errorf("%s: a core package takes the time as a value", s.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

func TestAdaptersDoNotKnowEachOther(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || !under(s.pkg, "internal") || coreRank(s.pkg) >= 0 || isTestSupport(s.pkg) {
			continue
		}
		if slices.Contains(composers, s.pkg) {
			used[s.pkg] = true
			continue
		}
		for _, imp := range s.imports() {
			in, ok := strings.CutPrefix(imp, module)
			if !ok || coreRank(in) >= 0 || under(in, s.pkg) || under(s.pkg, in) {
				continue
			}
			if pair := s.pkg + " " + in; slices.Contains(contracts, in) || slices.Contains(pairs, pair) {
				used[in], used[pair] = true, true
				continue
			}
			t.Errorf("%s imports %s: an adapter declares the few methods that it calls and gets the other passed in by cmd, so that each can be replaced and tested alone", s.file, in)
		}
	}
	for _, e := range slices.Concat(contracts, composers, pairs) {
		if !used[e] {
			t.Errorf("%s is excepted in archtest and needs not be: take it from its list", e)
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
		if s.test || s.pkg != "client" && s.pkg != "api" {
			continue
		}
		for _, imp := range s.imports() {
			if in, ok := strings.CutPrefix(imp, module); ok && (s.pkg == "api" || in != "api" && in != "problem") {
				t.Errorf("%s imports %s: a client sees what any outside client sees, and no more than that is promised to it", s.file, in)
			}
		}
	}
}

// TestProgramsLinkOnlyWhatTheyAreFor follows the imports of each program all the way down.
func TestProgramsLinkOnlyWhatTheyAreFor(t *testing.T) {
	controller := []string{"internal/controller", "internal/server", "internal/store/etcd", "internal/journal", "internal/repo"}
	host := []string{"internal/agent", "internal/agentlink", "internal/installer"}
	imports := map[string][]string{}
	for _, s := range sources(t) {
		if !s.test {
			imports[s.pkg] = append(imports[s.pkg], s.imports()...)
		}
	}
	for _, p := range []struct {
		name string
		not  []string
		why  string
	}{
		{"sw-patch", slices.Concat(controller, host), "a command line starts in milliseconds because it does not link a daemon"},
		{"patch_build", slices.Concat(controller, host), "a build machine needs no daemon"},
		{"query_patch", slices.Concat(controller, host), "a build machine needs no daemon"},
		{"modify_patch", slices.Concat(controller, host), "a build machine needs no daemon"},
		{"sw-patch-agent", controller, "an agent is small on every host"},
		{"sw-patch-controller", []string{"internal/agent", "internal/installer"}, "a controller changes no host; its host's agent does"},
	} {
		seen := map[string]bool{}
		var visit func(pkg string)
		visit = func(pkg string) {
			if seen[pkg] {
				return
			}
			seen[pkg] = true
			for _, imp := range imports[pkg] {
				if in, ok := strings.CutPrefix(imp, module); ok {
					visit(in)
				}
			}
		}
		visit("cmd/" + p.name)
		for pkg := range seen {
			if slices.Contains(p.not, pkg) {
				t.Errorf("%s links %s: %s", p.name, pkg, p.why)
			}
		}
		if len(seen) == 1 {
			t.Errorf("there is no program %s", p.name)
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
			if (in == "internal/lab" || in == "internal/store/mem" || isTestSupport(in)) && s.pkg != "cmd/patch-lab" && s.pkg != "internal/lab" {
				t.Errorf("%s imports %s: fakes and the lab stay out of what operators run", s.file, in)
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
			if sel, ok := n.(*ast.SelectorExpr); ok && isSelector(sel, "os", "Rename") {
				t.Errorf("%s renames by itself: internal/durable makes a file visible whole and durable, in one place", s.fset.Position(n.Pos()))
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

func TestHabits(t *testing.T) {
	used := map[string]bool{}
	for _, s := range sources(t) {
		if s.test || isTestSupport(s.pkg) || strings.HasSuffix(s.file, ".pb.go") {
			continue
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				st, ok := n.Type.(*ast.StructType)
				if !ok || !slices.ContainsFunc(st.Fields.List, func(f *ast.Field) bool { return isSelector(f.Type, "context", "Context") }) {
					break
				}
				if keeper := s.pkg + " " + n.Name.Name; slices.Contains(keepers, keeper) {
					used[keeper] = true
				} else {
					t.Errorf("%s: a context is the first parameter of what blocks and no field: nobody sees when a kept one ends", s.fset.Position(n.Pos()))
				}
			case *ast.FuncType:
				for i, f := range n.Params.List {
					if i > 0 && isSelector(f.Type, "context", "Context") {
						t.Errorf("%s: the context is the first parameter", s.fset.Position(f.Pos()))
					}
				}
			case *ast.CallExpr:
				switch {
				case isSelector(n.Fun, "time", "Sleep"):
					t.Errorf("%s: nothing sleeps: wait for the event, or for a timer and the context", s.fset.Position(n.Pos()))
				case isSelector(n.Fun, "os", "Exit") && !under(s.pkg, "cmd"):
					t.Errorf("%s: errors are returned up to main, which alone ends the program", s.fset.Position(n.Pos()))
				case len(n.Args) > 0 && startsBadly(n.Args):
					t.Errorf("%s: say what cannot be done and why: cannot <verb> <what>: <why>", s.fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
	for _, k := range keepers {
		if !used[k] {
			t.Errorf("%s is excepted in archtest and needs not be: take it from its list", k)
		}
	}
}

func isSelector(e ast.Expr, pkg, name string) bool {
	sel, ok := e.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}

// startsBadly says that a text among a call's arguments begins as no error of ours does.
func startsBadly(args []ast.Expr) bool {
	return slices.ContainsFunc(args, func(e ast.Expr) bool {
		lit, ok := e.(*ast.BasicLit)
		return ok && (strings.HasPrefix(lit.Value, `"failed to`) || strings.HasPrefix(lit.Value, `"error while`) || strings.HasPrefix(lit.Value, `"unable to`))
	})
}

// TestThePageNamesWhatExists holds ARCHITECTURE.md to the tree: every path in it is one.
func TestThePageNamesWhatExists(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	paths := regexp.MustCompile("`((?:api|bench|client|cmd|docs|e2e|host|internal|patch|problem|linkpb)(?:/[a-z0-9_.-]+)*)`").FindAllStringSubmatch(string(page), -1)
	if len(paths) < 20 {
		t.Fatalf("found %d paths; is this still the page?", len(paths))
	}
	for _, m := range paths {
		path := strings.Replace(m[1], "linkpb/", "internal/agentlink/linkpb/", 1)
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			t.Errorf("ARCHITECTURE.md names %s: %v", m[1], err)
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
