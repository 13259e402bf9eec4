package archtest

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// pure lists the packages that are functions of state and injected time, which
// is what lets the simulator run them. Files that match driver are the thin part
// of a package that does touch the world.
var pure = []struct {
	pkg    string
	driver *regexp.Regexp
}{
	{"crdt", regexp.MustCompile(`^(replica|submit|run|own|gossip|ae|log|fsys|author|verifier|dialogues|audit)\.go$`)},
	{"crdt/place", nil},
	{"crdt/live", nil},
	{"crdt/lease", nil},
	{"crdt/policy", nil},
	{"crdt/names", nil},
	{"wg", regexp.MustCompile(`^(mesh|fake)\.go$`)},
	{"wg/forward", nil},
	{"cmd/internal/mesh", nil},
	{"fogvm/reconcile/plan", nil},
	{"sim/chance", nil},
	{"sim/scenario", nil},
	{"sim/des", nil},
	{"sim/gossip", nil},
	{"sim/regions", nil},
	{"sim/record", nil},
}

// impure are functions and packages that read the world. Methods of a *rand.Rand
// that was handed in are fine; the package's own functions draw from a global.
var impure = map[string][]string{
	"time":         {"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"},
	"math/rand":    {"Int", "Intn", "Int31", "Int31n", "Int63", "Int63n", "Uint32", "Uint64", "Float32", "Float64", "Perm", "Shuffle", "Read", "Seed", "NormFloat64", "ExpFloat64"},
	"math/rand/v2": {"Int", "IntN", "Int32", "Int32N", "Int64", "Int64N", "Uint", "UintN", "Uint32", "Uint32N", "Uint64", "Uint64N", "N", "Float32", "Float64", "Perm", "Shuffle", "NormFloat64", "ExpFloat64"},
	"crypto/rand":  {"*"},
	"os":           {"*"},
	"os/exec":      {"*"},
	"net":          {"*"},
	"net/http":     {"*"},
	"syscall":      {"*"},
}

// anyOrder marks, with its reason, a loop over a map whose result does not
// depend on the order and that orderless does not see through. In a function's
// comment it covers all of the function.
const anyOrder = "any order:"

func TestCoreIsPure(t *testing.T) {
	present := map[string]bool{}
	for _, p := range ours(t) {
		pkg, _ := strings.CutPrefix(p.ImportPath, module)
		present[pkg] = true
	}
	var patterns []string
	for _, p := range pure {
		if present[p.pkg] {
			patterns = append(patterns, "./"+p.pkg)
		}
	}
	if len(patterns) == 0 {
		t.Fatal("none of the pure packages is there")
	}
	deps, err := goList(append([]string{"-export", "-deps"}, patterns...)...)
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for _, d := range deps {
		exports[d.ImportPath] = d.Export
	}
	for _, d := range deps {
		i := slices.IndexFunc(pure, func(p struct {
			pkg    string
			driver *regexp.Regexp
		}) bool {
			return module+p.pkg == d.ImportPath
		})
		if i < 0 {
			continue
		}
		found, err := impurities(d.ImportPath, d.Dir, d.GoFiles, pure[i].driver, exports)
		if err != nil {
			t.Errorf("%s: %v", d.ImportPath, err)
		}
		for _, f := range found {
			t.Error(f)
		}
	}
}

func TestPurityIsChecked(t *testing.T) {
	const source = `package p
import ("time"; "math/rand"; "sort")
func f(m map[string]int, r *rand.Rand) (int, []string) {
	go f(nil, nil)
	_ = time.Now()
	n := rand.Intn(3) + r.Intn(3)
	for range m { // any order: counting
		n++
	}
	var keys, first []string
	for k := range m {
		first = append(first, k)
	}
	for k := range m {
		if k != "" {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	copied := map[string]int{}
	for k, v := range m {
		copied[k] = v
		n += v
	}
	return n, append(keys, first...)
}
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.go"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	deps, err := goList("-export", "-deps", "time", "math/rand", "sort")
	if err != nil {
		t.Fatal(err)
	}
	exports := map[string]string{}
	for _, d := range deps {
		exports[d.ImportPath] = d.Export
	}
	found, err := impurities("p", dir, []string{"p.go"}, nil, exports)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range found {
		lines = append(lines, regexp.MustCompile(`p\.go:(\d+)`).FindStringSubmatch(f)[1])
	}
	if got, want := strings.Join(lines, " "), "4 5 6 11"; got != want {
		t.Errorf("impure lines %q, want %q:\n%s", got, want, strings.Join(found, "\n"))
	}
}

// impurities type-checks a package against its dependencies' export data and
// gives one line for each thing its pure files must not do.
func impurities(pkg, dir string, files []string, driver *regexp.Regexp, exports map[string]string) ([]string, error) {
	fset := token.NewFileSet()
	var parsed []*ast.File
	for _, name := range files {
		f, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		parsed = append(parsed, f)
	}
	lookup := func(path string) (io.ReadCloser, error) {
		file, ok := exports[path]
		if !ok || file == "" {
			return nil, fmt.Errorf("no export data for %s", path)
		}
		return os.Open(file)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: importer.ForCompiler(fset, "gc", lookup)}
	if _, err := conf.Check(pkg, fset, parsed, info); err != nil {
		return nil, err
	}
	var found []string
	for i, f := range parsed {
		if driver != nil && driver.MatchString(files[i]) {
			continue
		}
		marked := markedLines(fset, f)
		fine := orderless(f)
		say := func(n ast.Node, format string, args ...any) {
			at := fset.Position(n.Pos())
			found = append(found, fmt.Sprintf("%s:%d: %s", filepath.Join(pkg, filepath.Base(at.Filename)), at.Line, fmt.Sprintf(format, args...)))
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				say(n, "starts a goroutine: return an effect and let the caller run it")
			case *ast.RangeStmt:
				line := fset.Position(n.Pos()).Line
				if _, isMap := info.Types[n.X].Type.Underlying().(*types.Map); isMap && !fine[n] && !marked[line] && !marked[line-1] {
					say(n, "ranges over a map: sort the keys, or say why it does not matter: // %s …", anyOrder)
				}
			case *ast.Ident:
				if obj := info.Uses[n]; obj != nil && obj.Pkg() != nil && isImpure(obj) {
					say(n, "uses %s.%s: take it as an argument", obj.Pkg().Path(), obj.Name())
				}
			}
			return true
		})
	}
	return found, nil
}

func markedLines(fset *token.FileSet, f *ast.File) map[int]bool {
	marked := map[int]bool{}
	for _, group := range f.Comments {
		for _, c := range group.List {
			if strings.Contains(c.Text, anyOrder) {
				marked[fset.Position(c.Pos()).Line] = true
			}
		}
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Doc != nil && strings.Contains(fn.Doc.Text(), anyOrder) {
			for line := fset.Position(fn.Pos()).Line; line <= fset.Position(fn.End()).Line; line++ {
				marked[line] = true
			}
		}
	}
	return marked
}

// isImpure looks at functions and variables of a package, not at methods, types
// or constants: a time.Time that was handed in is data.
func isImpure(obj types.Object) bool {
	if obj.Parent() != obj.Pkg().Scope() {
		return false
	}
	switch obj.(type) {
	case *types.Func, *types.Var:
	default:
		return false
	}
	names := impure[obj.Pkg().Path()]
	return slices.Contains(names, "*") || slices.Contains(names, obj.Name())
}

// orderless finds the loops whose order cannot show: those that only fill or
// empty a map by the loop's key or count, and those that only append to a slice
// which a later statement of the same block sorts.
func orderless(f *ast.File) map[*ast.RangeStmt]bool {
	fine := map[*ast.RangeStmt]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		block, ok := n.(*ast.BlockStmt)
		if !ok {
			return true
		}
		for i, s := range block.List {
			loop, ok := s.(*ast.RangeStmt)
			if !ok {
				continue
			}
			key, _ := loop.Key.(*ast.Ident)
			if slice, ok := commutes(loop.Body.List, key); ok && (slice == "" || sortedLater(slice, block.List[i+1:])) {
				fine[loop] = true
			}
		}
		return true
	})
	return fine
}

// commutes says whether statements may run in any order of the loop, and which
// one slice they append to.
func commutes(list []ast.Stmt, key *ast.Ident) (slice string, ok bool) {
	for _, s := range list {
		into, ok := commutesOne(s, key)
		if !ok || into != "" && slice != "" && into != slice {
			return "", false
		}
		if into != "" {
			slice = into
		}
	}
	return slice, true
}

func commutesOne(s ast.Stmt, key *ast.Ident) (slice string, ok bool) {
	switch s := s.(type) {
	case *ast.IncDecStmt:
		return "", true
	case *ast.BranchStmt:
		return "", s.Tok == token.CONTINUE
	case *ast.IfStmt:
		if s.Else != nil || s.Init != nil && !isDefine(s.Init) {
			return "", false
		}
		return commutes(s.Body.List, key)
	case *ast.RangeStmt:
		inner, _ := s.Key.(*ast.Ident)
		return commutes(s.Body.List, inner)
	case *ast.ExprStmt: // delete(m, k)
		call, isCall := s.X.(*ast.CallExpr)
		return "", isCall && isIdent(call.Fun, "delete")
	case *ast.AssignStmt:
		if len(s.Lhs) != 1 || len(s.Rhs) != 1 {
			return "", false
		}
		if s.Tok == token.ADD_ASSIGN {
			// Sums commute; strings do not, but a string sum is seen in review.
			return "", true
		}
		if index, isIndex := s.Lhs[0].(*ast.IndexExpr); isIndex {
			return "", key != nil && isIdent(index.Index, key.Name) || isMember(s.Rhs[0])
		}
		if s.Tok == token.DEFINE {
			return "", true
		}
		target := types.ExprString(s.Lhs[0])
		call, isCall := s.Rhs[0].(*ast.CallExpr)
		if isCall && isIdent(call.Fun, "append") && types.ExprString(call.Args[0]) == target {
			return target, true
		}
	}
	return "", false
}

// isMember is what a set holds: true or struct{}{}, the same whoever puts it.
func isMember(e ast.Expr) bool {
	lit, ok := e.(*ast.CompositeLit)
	return isIdent(e, "true") || ok && len(lit.Elts) == 0
}

func isDefine(s ast.Stmt) bool {
	assign, ok := s.(*ast.AssignStmt)
	return ok && assign.Tok == token.DEFINE
}

func isIdent(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

// sortedLater looks for slices.Sort…(slice, …) or sort.…(slice, …).
func sortedLater(slice string, list []ast.Stmt) bool {
	return slices.ContainsFunc(list, func(s ast.Stmt) bool {
		expr, ok := s.(*ast.ExprStmt)
		if !ok {
			return false
		}
		call, ok := expr.X.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 || types.ExprString(call.Args[0]) != slice {
			return false
		}
		fun, ok := call.Fun.(*ast.SelectorExpr)
		return ok && (isIdent(fun.X, "sort") || isIdent(fun.X, "slices") && strings.HasPrefix(fun.Sel.Name, "Sort"))
	})
}
