package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/formthefog/formation/"

// rule is one package's row: what of ours it may import, directly, and why no
// more. A pattern ending in "/..." covers a folder and what is below it.
type rule struct {
	pkg    string
	may    []string
	reason string
}

var rules = []rule{
	{"store/formfile", nil, "a language is judged by its text alone; editors and linters use it without a store"},
	{"store/whole", nil, "writes files for everybody, and so knows nobody"},
	{"store", []string{"store/formfile"}, "content addressing knows neither peers nor machines: the network is its Fetcher"},
	{"crdt/stmt", nil, "guest, mesh and CLI verify statements too: it must stay small, static and pure Go"},
	{"crdt", []string{"crdt/stmt"}, "merging must be possible to simulate: transport and engine are handed in"},
	{"crdt/place", []string{"crdt", "crdt/stmt"}, "every node must compute the same ranking from the same view, and from nothing else"},
	{"crdt/live", []string{"crdt", "crdt/stmt"}, "liveness is a function of events and time"},
	{"crdt/seal", []string{"crdt/stmt"}, "encrypts bytes to keys; what they are secrets of is said by the caller"},
	{"crdt/lease", []string{"crdt/stmt"}, "who holds a lease is a function of requests and time"},
	{"crdt/policy", []string{"crdt", "crdt/stmt"}, "who may talk to whom is a function of a view"},
	{"crdt/names", []string{"crdt", "crdt/stmt", "crdt/policy"}, "what names there are is a function of a view; who answers, and to whom, is said elsewhere"},
	{"crdt/automerge", []string{"crdt", "crdt/stmt"}, "the one package with cgo, behind crdt.SpecEngine, so that all others build without it"},
	{"p2p/fair", nil, "shares places between peers, whatever they are places of"},
	{"p2p/exchange", []string{"p2p/fair"}, "moves blocks by CID and knows nothing of packs"},
	{"p2p", []string{"p2p/exchange", "store/whole"}, "bytes only: no domain type, so admission and meaning are handed in"},
	{"fogvm/guest", []string{"crdt/stmt"}, "it becomes PID 1 of every guest: small, static, no libp2p"},
	{"fogvm/guest/mesh", []string{"fogvm/guest", "crdt", "crdt/stmt", "crdt/policy", "crdt/names", "wg", "wg/dns", "wg/kernel", "wg/keyfile", "wg/link", "store/whole"}, "the guest believes statements and not its host, so it needs the state's rules, and no part of a node"},
	{"fogvm/boottime", nil, "a clock; whoever waits uses it"},
	{"fogvm", []string{"fogvm/guest", "fogvm/boottime"}, "a VM's life; what should run and where its images come from is said by the caller"},
	{"fogvm/build", []string{"store", "store/formfile", "store/whole"}, "turns a Formfile into layers; needs no swarm"},
	{"fogvm/base", []string{"store"}, "makes base images; needs no swarm"},
	{"fogvm/reconcile/plan", []string{"crdt/..."}, "decisions are a function of what is wanted, what is there, and time"},
	{"fogvm/reconcile", []string{"store", "store/whole", "crdt/...", "fogvm", "fogvm/boottime", "fogvm/guest", "fogvm/reconcile/plan", "wg/..."}, "the one place where the leaves meet"},
	{"wg", nil, "a mesh is a set of peers; who they are is said by the caller"},
	{"wg/keyfile", []string{"store/whole"}, "a key on a disk, of a host's or a guest's"},
	{"wg/dns", nil, "answers from a snapshot"},
	{"wg/splitdns", []string{"store/whole"}, "tells a machine's resolver whom to ask; what is answered is somebody else's"},
	{"wg/link", nil, "addresses and routes of an interface; which ones is said by the caller"},
	{"wg/forward", nil, "routes what it cannot read"},
	{"wg/embedded", []string{"wg"}, "WireGuard in this process; the guest and the mesh itself do without it"},
	{"wg/kernel", []string{"wg"}, "WireGuard of the kernel's; in the guest too, so without the one in user space"},
	{"wg/carrier", []string{"wg/forward"}, "moves datagrams between hosts; streams are handed in"},
	{"wg/ingress", []string{"store/whole"}, "serves what it is told to; what that is replicas of, and how they are reached, is said by the caller"},
	{"wg/wgtest", []string{"wg", "wg/embedded"}, "tests of devices, and a network between them"},
	{"cmd/internal/api", []string{"crdt/...", "store"}, "serves a view and takes statements; it can start nothing by itself"},
	{"cmd/internal/keystore", []string{"crdt/stmt", "store/whole"}, "keys at rest; knows no network"},
	{"cmd/internal/mesh", []string{"crdt/...", "wg", "wg/carrier", "wg/dns"}, "what is known, as the mesh's parts take it; touches nothing"},
	{"cmd/internal/spell", nil, "words only"},
	{"cmd/internal/tree", []string{"cmd/internal/api", "cmd/internal/spell"}, "what was typed wrong, the same for form and formd"},
	{"cmd/internal/config", []string{"crdt/stmt", "cmd/internal/spell"}, "parsing happens before anything is opened"},
	{"cmd/internal/routes", []string{"crdt/...", "wg/ingress", "cmd/internal/config"}, "what is known, as an ingress takes it, and as ingress nodes say it; touches nothing"},
	{"cmd/form-guest", []string{"fogvm/guest", "fogvm/guest/mesh"}, "the guest's binary is loaded into memory by every VM"},
	{"docs", nil, "text that programs embed"},
	{"cmd/formd", anything, "assembles"},
	{"cmd/form", append([]string{"cmd/form/internal/..."}, anything...), "assembles"},
	{"cmd/form/internal/...", append([]string{"cmd/form/internal/..."}, anything...), "parts of form alone"},
	{"sim/regions", nil, "distances between places are the same for every tier"},
	{"sim/gossip", nil, "a model of somebody else's router, to be held against it: it carries messages and knows none"},
	{"sim/des", []string{"crdt/...", "fogvm/reconcile/plan", "sim/chance", "sim/gossip", "sim/regions"}, "the events of a seed are the same for ever: it runs the pure steps and nothing that touches the world"},
	{"sim/live", []string{"crdt", "crdt/stmt", "p2p", "sim/chance", "sim/des", "sim/gossip", "sim/record", "sim/regions", "sim/scenario"}, "runs what formd runs of state and network, and nothing that is a machine's"},
	{"sim/proc", []string{"crdt", "crdt/stmt", "store", "sim/chance", "sim/des", "sim/record", "sim/regions", "sim/scenario"}, "holds daemons from outside: what it knows of them is their API, and what owners sign"},
	{"sim/chance", nil, "numbers that a seed and words name"},
	{"sim/scenario", []string{"sim/chance"}, "what happens is data; which tier has it happen is somebody else's"},
	{"sim/record", []string{"sim/regions"}, "what a run leaves behind, for whoever reads it: no tier's types are in it"},
	{"sim/page", []string{"sim/record"}, "draws what was recorded, whichever tier it was"},
	{"sim", anything, "runs the real parts over a simulated world"},
	{"scripts/...", anything, "tools of the repository"},
}

// anything below: all but other commands and tools.
var anything = []string{"store/...", "crdt/...", "p2p/...", "fogvm/...", "wg/...", "cmd/internal/...", "sim/...", "docs"}

// heavy says which third-party modules must not reach a package, through others
// either.
var heavy = []struct{ pkg, module, reason string }{
	{"cmd/form", "github.com/automerge/", "form must build with CGO_ENABLED=0"},
	{"cmd/form-guest", "github.com/libp2p/go-libp2p/p2p", "the guest's binary must stay small: of libp2p it has the words alone that package crdt uses"},
	{"cmd/form-guest", "github.com/ipfs/boxo", "the guest's binary must stay small"},
	{"cmd/form-guest", "github.com/automerge/", "the guest's binary is static"},
	{"cmd/form-guest", "filippo.io/age", "the guest's binary must stay small: secrets are opened on the host"},
	{"crdt/stmt", "github.com/libp2p/", "statements are verified where libp2p is not"},
	{"crdt/place", "github.com/automerge/", "the core is pure"},
	{"fogvm/reconcile/plan", "github.com/automerge/", "the core is pure"},
}

// listed is what `go list -json` tells of a package.
type listed struct {
	ImportPath, Name, Doc, Dir, Export string
	Standard                           bool
	GoFiles, CgoFiles                  []string
	Imports, Deps                      []string
	Error                              *struct{ Err string }
}

// packages lists every package of the module, on Linux with cgo, tests left out.
var packages = sync.OnceValues(func() ([]listed, error) { return goList("-e", "./...") })

func goList(args ...string) ([]listed, error) {
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Doc,Dir,Export,Standard,GoFiles,CgoFiles,Imports,Deps,Error"}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w\n%s", strings.Join(args, " "), err, &stderr)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
}

func ours(t *testing.T) []listed {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("go list found no package")
	}
	return all
}

func matches(pattern, pkg string) bool {
	if dir, tree := strings.CutSuffix(pattern, "/..."); tree {
		return pkg == dir || strings.HasPrefix(pkg, dir+"/")
	}
	return pkg == pattern
}

func ruleFor(pkg string) (rule, bool) {
	for _, r := range rules {
		if matches(r.pkg, pkg) {
			return r, true
		}
	}
	return rule{}, false
}

// problems gives one line for each arrow that must not be.
func problems(pkg string, imports []string) []string {
	r, ok := ruleFor(pkg)
	if !ok {
		return []string{fmt.Sprintf("%s has no row in the table: give it one, with its reason", pkg)}
	}
	var found []string
	for _, i := range imports {
		target, own := strings.CutPrefix(i, module)
		if !own || slices.ContainsFunc(r.may, func(p string) bool { return matches(p, target) }) {
			continue
		}
		if strings.HasPrefix(target, pkg+"/internal/") {
			continue
		}
		found = append(found, fmt.Sprintf("%s imports %s: %s", pkg, target, r.reason))
	}
	return found
}

func TestArrows(t *testing.T) {
	for _, p := range ours(t) {
		pkg, _ := strings.CutPrefix(p.ImportPath, module)
		if p.Error != nil {
			t.Logf("%s: %s", pkg, p.Error.Err)
		}
		for _, problem := range problems(pkg, p.Imports) {
			t.Error(problem)
		}
	}
}

func TestArrowsAreChecked(t *testing.T) {
	for _, c := range []struct {
		pkg, imports string
		bad          bool
	}{
		{"p2p", "crdt", true},
		{"p2p", "p2p/exchange", false},
		{"crdt/place", "crdt/live", true},
		{"fogvm/reconcile", "crdt/place", false},
		{"cmd/formd", "cmd/form", true},
		{"cmd/form-guest", "store", true},
		{"util", "crdt", true},
	} {
		if got := len(problems(c.pkg, []string{module + c.imports})) > 0; got != c.bad {
			t.Errorf("%s → %s: refused = %v, want %v", c.pkg, c.imports, got, c.bad)
		}
	}
}

func TestHeavyModulesStayOut(t *testing.T) {
	for _, p := range ours(t) {
		pkg, _ := strings.CutPrefix(p.ImportPath, module)
		for _, h := range heavy {
			if h.pkg != pkg {
				continue
			}
			if i := slices.IndexFunc(p.Deps, func(d string) bool { return strings.HasPrefix(d, h.module) }); i >= 0 {
				t.Errorf("%s reaches %s: %s (see: go list -deps ./%s)", pkg, p.Deps[i], h.reason, pkg)
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range ours(t) {
		if strings.TrimSpace(p.Doc) == "" && len(p.GoFiles)+len(p.CgoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// vague are names that say nothing of what is inside.
var vague = regexp.MustCompile(`^(util|utils|common|helper|helpers|types|misc|base_?lib|shared|lib|core|manager|internal_?util)$`)

func TestNoVagueNames(t *testing.T) {
	for _, p := range ours(t) {
		if name := path.Base(p.ImportPath); vague.MatchString(name) || vague.MatchString(p.Name) {
			t.Errorf("%s: %q says nothing of what is inside", p.ImportPath, name)
		}
	}
}
