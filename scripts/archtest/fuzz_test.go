package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// decoders are the functions and methods that read bytes of peers, guests or the
// disk, each with the fuzz target of its package that reaches it, or with why it
// needs none.
var decoders = []struct{ dir, fn, fuzz, reason string }{
	{"crdt", "decodeNode", "FuzzApply", ""},
	{"crdt", "decodeClaim", "FuzzApply", ""},
	{"crdt", "decodeOwner", "FuzzApply", ""},
	{"crdt", "decodeSpec", "FuzzApply", ""},
	{"crdt", "readOps", "FuzzApply", ""},
	{"crdt", "decodeSecret", "FuzzApply", ""},
	{"crdt", "readAhead", "FuzzApply", ""},
	{"crdt", "readInt", "FuzzApply", ""},
	{"crdt", "readTexts", "FuzzApply", ""},
	{"crdt", "readKeys", "FuzzApply", ""},
	{"crdt", "decodeGossip", "FuzzGossip", ""},
	{"crdt", "decodeAEFrame", "FuzzAntiEntropy", ""},
	{"crdt", "readFrames", "FuzzLog", ""},
	{"crdt", "decodeAgeing", "FuzzAgeing", ""},
	{"crdt", "decodeOmitted", "FuzzOmitted", ""},
	{"crdt", "decodeDoubled", "FuzzEquivocations", ""},
	{"crdt", "ParseDocID", "", "a fixed length of base32; what it accepts it also writes"},
	{"crdt", "readSmall", "", "bounds a file, and interprets nothing"},
	{"crdt/stmt", "Peek", "FuzzVerify", ""},
	{"crdt/stmt", "PeekHint", "FuzzPeekHint", ""},
	{"crdt/stmt", "PeekOperators", "FuzzPeekOperators", ""},
	{"crdt/stmt", "decodeFixed", "FuzzVerify", ""},
	{"crdt/stmt", "ParseTicket", "FuzzTicket", ""},
	{"crdt/stmt", "DecodeHello", "FuzzHello", ""},
	{"crdt/stmt", "ParseKey", "", "a fixed length behind libp2p's own parser"},
	{"crdt/policy", "ParsePort", "FuzzParsePort", ""},
	{"crdt/policy", "parseKey", "", "a fixed length of strict base64"},
	{"crdt/policy", "parseAddr", "", "behind netip's parser"},
	{"crdt/names", "Parse", "FuzzParse", ""},
	{"crdt/names", "ParseLabel", "FuzzParse", ""},
	{"p2p", "readHello", "FuzzHello", ""},
	{"p2p", "readVerdict", "FuzzHello", ""},
	{"p2p", "parseListen", "", "the operator's own flag"},
	{"p2p/exchange", "readRequest", "FuzzReadRequest", ""},
	{"p2p/exchange", "decodeRead", "FuzzDecodeRequests", ""},
	{"p2p/exchange", "decodeEntries", "FuzzDecodeRequests", ""},
	{"p2p/exchange", "decodeHave", "FuzzDecodeHave", ""},
	{"p2p/exchange", "readOther", "FuzzDecodeHave", ""},
	{"store", "decodeNode", "FuzzDecodeRoot", ""},
	{"store", "decodeRoot", "FuzzDecodeRoot", ""},
	{"store", "parseInterior", "FuzzInterior", ""},
	{"store", "readCAR", "FuzzImport", ""},
	{"store", "readAt", "", "copies bytes of a verified file"},
	{"fogvm/guest", "ReadFrame", "FuzzFrames", ""},
	{"fogvm/guest", "readJSON", "FuzzFrames", ""},
	{"fogvm/guest", "ReadNews", "FuzzNews", ""},
	{"fogvm/guest", "ReadMeshReport", "FuzzNews", ""},
	{"fogvm/guest", "decodeSize", "FuzzPreamble", ""},
	{"fogvm/guest", "readPreamble", "FuzzPreamble", ""},
	{"fogvm/reconcile", "readLeaseFrame", "FuzzLeaseFrame", ""},
	{"fogvm/reconcile", "readRecord", "FuzzSecretQuestion", ""},
	{"wg/carrier", "parseGreeting", "FuzzGreeting", ""},
	{"wg/carrier", "readFrame", "FuzzFrame", ""},
	{"wg/carrier", "readAddr", "FuzzGreeting", ""},
	{"wg/carrier", "parseEndpoint", "", "the operator's own, behind netip's parser"},
	{"wg/embedded", "parseSegment", "FuzzAnswers", ""},
	{"wg/embedded", "decode", "", "what the device in this process says of itself"},
	{"wg/embedded", "decodeField", "", "as decode"},
	{"cmd/form/internal/agent", "readLine", "", "a user's own programs, over a socket of the user's; bounded"},
	{"crdt/seal", "Open", "FuzzOpen", ""},
	{"crdt/seal", "Check", "", "compares a hash; what follows the salt is the value as it is"},
	{"fogvm", "qmpClient.run", "FuzzQMP", ""},
	{"fogvm", "frameAllowed", "FuzzFrameAllowed", ""},
	{"fogvm", "meshDatagram", "FuzzMeshDatagram", ""},
	{"fogvm", "readMeshFrame", "FuzzMeshFrame", ""},
	{"fogvm", "lineConn.readLine", "", "formd and its own shim, over a socket of the node's folder"},
	{"fogvm", "readJSONFile", "", "files that formd and the shim wrote; what a VM may be is checked when it starts"},
	{"fogvm", "readKept", "", "bounds a log, and interprets nothing"},
	{"fogvm/build", "parseIgnore", "FuzzIgnore", ""},
	{"fogvm/build", "readAccounts", "FuzzAccounts", ""},
	{"fogvm/build", "readLower", "", "opens a file of a layer, and interprets nothing"},
	{"fogvm/build", "readLowers", "", "as readLower"},
	{"fogvm/build", "readXattrs", "", "asks the kernel"},
	{"fogvm/build", "readStep", "", "the cache that this builder wrote"},
	{"store/formfile", "Parse", "FuzzParse", ""},
	{"store/formfile", "parseDuration", "FuzzParse", ""},
	{"store/formfile", "parseBool", "FuzzParse", ""},
	{"cmd/internal/config", "Parse", "FuzzParse", ""},
	{"cmd/internal/config", "ParseSize", "FuzzParse", ""},
	{"cmd/internal/config", "ParseDuration", "FuzzParse", ""},
	{"cmd/internal/config", "ParseAccept", "", "the operator's own words"},
	{"cmd/internal/config", "ParseLabels", "", "as ParseAccept"},
	{"cmd/internal/config", "ParsePorts", "", "as ParseAccept"},
	{"wg/ingress", "ReadDatagram", "FuzzDatagrams", ""},
	{"wg/ingress", "readAuthority", "", "files that this machine wrote, behind the standard library's parsers"},
	{"cmd/internal/routes", "ParseReplica", "", "what ReplicaID has written, in one process"},
	{"cmd/internal/keystore", "decode", "FuzzDecode", ""},
	{"cmd/form/internal/kit", "Parse", "FuzzParse", ""},
	{"cmd/form/internal/kit", "ParseAuthorizedKey", "", "the user's own key files, behind the SSH library's parser"},
	{"cmd/internal/api", "decode", "FuzzBody", ""},
	{"cmd/internal/api", "ReadHeader", "FuzzReadHeader", ""},
	{"cmd/internal/api", "readEvents", "FuzzReadEvents", ""},
	{"sim/record", "Read", "FuzzRead", ""},
}

// decoding is how a function is called that takes bytes apart.
var decoding = regexp.MustCompile(`^([Dd]ecode|[Pp]arse|[Rr]ead|[Pp]eek)([A-Z]|$)`)

// takesApart says whether a function gets bytes: a slice, a string, a reader or a
// statement with a body.
func takesApart(f *ast.FuncDecl) bool {
	for _, p := range f.Type.Params.List {
		switch t := p.Type.(type) {
		case *ast.ArrayType:
			if id, ok := t.Elt.(*ast.Ident); ok && id.Name == "byte" {
				return true
			}
		case *ast.Ident:
			if t.Name == "string" {
				return true
			}
		case *ast.SelectorExpr:
			if strings.HasSuffix(t.Sel.Name, "Reader") || t.Sel.Name == "Conn" {
				return true
			}
		case *ast.StarExpr:
			if s, ok := t.X.(*ast.SelectorExpr); ok && (strings.HasSuffix(s.Sel.Name, "Reader") || s.Sel.Name == "Statement") {
				return true
			}
		}
	}
	return false
}

// Whatever takes bytes of others apart has a fuzz target, or a reason to need none.
func TestDecodersAreFuzzed(t *testing.T) {
	dirs := map[string]bool{}
	for _, d := range decoders {
		dirs[d.dir] = true
		if (d.fuzz == "") == (d.reason == "") {
			t.Errorf("%s.%s: one of target and reason, please", d.dir, d.fn)
		}
	}
	for dir := range dirs {
		funcs, all, targets := functions(t, filepath.Join("../..", dir))
		for fn := range funcs {
			if !slices.ContainsFunc(decoders, func(d struct{ dir, fn, fuzz, reason string }) bool { return d.dir == dir && d.fn == fn }) {
				t.Errorf("%s.%s takes bytes apart and is not in the table: give it a fuzz target, or a reason", dir, fn)
			}
		}
		for _, d := range decoders {
			if d.dir != dir {
				continue
			}
			if !all[d.fn] {
				t.Errorf("%s.%s is in the table and not there", dir, d.fn)
			}
			if d.fuzz != "" && !targets[d.fuzz] {
				t.Errorf("%s.%s: there is no %s", dir, d.fn, d.fuzz)
			}
		}
	}
}

// Each of those targets begins from what earlier runs of it found.
func TestFuzzTargetsHaveCorpora(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range decoders {
		dir := filepath.Join("../..", d.dir, "testdata/fuzz", d.fuzz)
		if d.fuzz == "" || seen[dir] {
			continue
		}
		seen[dir] = true
		if corpus, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(corpus) == 0 {
			t.Errorf("%s: %s has no corpus: keep what a run of it found (scripts/fuzz.sh) in testdata/fuzz", d.dir, d.fuzz)
		}
	}
}

// functions are what is named as a decoder in a folder, all its functions and
// methods, and its fuzz targets.
func functions(t *testing.T, dir string) (decoders, all, targets map[string]bool) {
	t.Helper()
	decoders, all, targets = map[string]bool{}, map[string]bool{}, map[string]bool{}
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatal(dir, err, fs.ErrNotExist)
	}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			switch {
			case strings.HasSuffix(file, "_test.go"):
				if strings.HasPrefix(fn.Name.Name, "Fuzz") {
					targets[fn.Name.Name] = true
				}
				continue
			case fn.Recv != nil:
				all[receiver(fn)+"."+fn.Name.Name] = true
				continue
			}
			all[fn.Name.Name] = true
			switch {
			case decoding.MatchString(fn.Name.Name) && takesApart(fn):
				decoders[fn.Name.Name] = true
			}
		}
	}
	return decoders, all, targets
}

// receiver is the type that a method is of.
func receiver(fn *ast.FuncDecl) string {
	t := fn.Recv.List[0].Type
	if p, ok := t.(*ast.StarExpr); ok {
		t = p.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}
