package api

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// answers are the types of the routes' 200 answers; of a stream, of its events.
var answers = map[string]reflect.Type{
	"GET /v1/health": reflect.TypeFor[Health](), "GET /v1/status": reflect.TypeFor[Status](), "GET /v1/node": reflect.TypeFor[Self](),
	"POST /v1/node/drain": reflect.TypeFor[DrainRequest](), "GET /v1/nodes": reflect.TypeFor[Node](), "POST /v1/nodes/{key}/forget": reflect.TypeFor[Forgotten](), "POST /v1/nodes/{key}/operator": reflect.TypeFor[NodeOperator](), "GET /v1/peers": reflect.TypeFor[Peer](), "GET /v1/mesh": reflect.TypeFor[Mesh](),
	"GET /v1/doctor": reflect.TypeFor[Check](), "GET /v1/instances": reflect.TypeFor[Instance](), "GET /v1/instances/{id}": reflect.TypeFor[Instance](),
	"GET /v1/instances/{id}/explain": reflect.TypeFor[Explain](), "GET /v1/instances/{id}/logs": reflect.TypeFor[LogLine](),
	"GET /v1/instances/{id}/claims": reflect.TypeFor[Statements](), "GET /v1/instances/{id}/secrets": reflect.TypeFor[Secret](),
	"GET /v1/events": reflect.TypeFor[Event](), "GET /v1/owners/{key}/statements": reflect.TypeFor[Statements](), "GET /v1/owners/{key}/mesh": reflect.TypeFor[Statements](),
	"POST /v1/statements": reflect.TypeFor[SubmitResponse](), "GET /v1/packs": reflect.TypeFor[Pack](), "GET /v1/packs/{cid}": reflect.TypeFor[Pack](),
	"GET /v1/packs/{cid}/holders": reflect.TypeFor[Holders](), "POST /v1/packs/{cid}/fetch": reflect.TypeFor[FetchProgress](),
	"GET /v1/bases": reflect.TypeFor[Base](), "POST /v1/bases": reflect.TypeFor[Base](), "POST /v1/invites": reflect.TypeFor[Invite](),
}

// TestOpenAPISchemas compares the document with the Go types: each route's
// answer, and each schema's keys and their types. It reads the document by line:
// one line is one property.
func TestOpenAPISchemas(t *testing.T) {
	b, err := os.ReadFile("../../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	paths, schemas, ok := strings.Cut(string(b), "\n  schemas:\n")
	if !ok {
		t.Fatal("no schemas")
	}
	documented := documentedAnswers(paths)
	for _, r := range (&server{}).routes() {
		name := r.method + " " + r.path
		if typ, ok := answers[name]; r.path != "/v1/openapi.yaml" && (!ok || documented[name] != typ.Name()) {
			t.Errorf("%s answers %v, documented as %q", name, typ, documented[name])
		}
	}
	want := map[string]map[string]string{}
	for _, typ := range answers {
		shapes(typ, want)
	}
	shapes(reflect.TypeFor[Problem](), want)
	got := documentedSchemas(schemas)
	for name := range got {
		if want[name] == nil {
			t.Errorf("schema %s is no answer's", name)
		}
	}
	for name, keys := range want {
		if !reflect.DeepEqual(got[name], keys) {
			t.Errorf("%s is documented as\n%v\nand sent as\n%v", name, got[name], keys)
		}
	}
}

// documentedAnswers is the schema of each route's 200.
func documentedAnswers(paths string) map[string]string {
	out := map[string]string{}
	path := regexp.MustCompile(`^  (/v1/\S+):`)
	method := regexp.MustCompile(`^    (get|post):`)
	ref := regexp.MustCompile(`#/components/schemas/(\w+)`)
	route, at, answer := "", "", false
	for line := range strings.Lines(paths) {
		if m := path.FindStringSubmatch(line); m != nil {
			at, answer = m[1], false
		}
		if m := method.FindStringSubmatch(line); m != nil {
			route, answer = strings.ToUpper(m[1])+" "+at, false
		}
		if _, rest, ok := strings.Cut(line, `"200":`); ok {
			line, answer = rest, true
		}
		if m := ref.FindStringSubmatch(line); m != nil && answer && out[route] == "" {
			out[route] = m[1]
		}
	}
	return out
}

// documentedSchemas is each schema's properties and the type of each.
func documentedSchemas(text string) map[string]map[string]string {
	out := map[string]map[string]string{}
	schema := regexp.MustCompile(`^    (\w+):\s*$`)
	property := regexp.MustCompile(`^        (\w+): \{(.*)\}\s*$`)
	name := ""
	for line := range strings.Lines(text) {
		if m := schema.FindStringSubmatch(line); m != nil {
			name = m[1]
			out[name] = map[string]string{}
		} else if m := property.FindStringSubmatch(line); m != nil {
			out[name][m[1]] = documentedType(m[2])
		}
	}
	return out
}

func documentedType(s string) string {
	ref := regexp.MustCompile(`\$ref: "#/components/schemas/(\w+)"`).FindStringSubmatch(s)
	kind := regexp.MustCompile(`^type: (\w+)`).FindStringSubmatch(s)
	switch {
	case strings.HasPrefix(s, `type: [string, "null"]`):
		return "string or null"
	case strings.HasPrefix(s, `type: [integer, "null"]`):
		return "integer or null"
	case strings.HasPrefix(s, "enum:"):
		return "string"
	case ref != nil && strings.HasPrefix(s, "type: array"):
		return "array of " + ref[1]
	case ref != nil:
		return ref[1]
	case kind != nil:
		return kind[1]
	}
	return s
}

// shapes notes the keys and types that typ, and what is in it, has as JSON.
func shapes(typ reflect.Type, into map[string]map[string]string) {
	if into[typ.Name()] != nil {
		return
	}
	keys := map[string]string{}
	into[typ.Name()] = keys
	for i := range typ.NumField() {
		f := typ.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		keys[key] = shape(f.Type, into)
	}
}

func shape(typ reflect.Type, into map[string]map[string]string) string {
	switch {
	case typ == reflect.TypeFor[time.Time](), typ == reflect.TypeFor[stmt.Key](), typ == reflect.TypeFor[[]byte]():
		return "string"
	case typ.Kind() == reflect.Pointer:
		return shape(typ.Elem(), into) + " or null"
	case typ.Kind() == reflect.Struct:
		shapes(typ, into)
		return typ.Name()
	case typ.Kind() == reflect.Slice:
		if e := typ.Elem(); e.Kind() == reflect.Struct {
			return "array of " + shape(e, into)
		}
		return "array"
	case typ.Kind() == reflect.Map:
		return "object"
	case typ.Kind() == reflect.String:
		return "string"
	case typ.Kind() == reflect.Bool:
		return "boolean"
	case typ.Kind() == reflect.Float64:
		return "number"
	case typ.Kind() >= reflect.Int && typ.Kind() <= reflect.Uint64:
		return "integer"
	}
	return fmt.Sprint(typ)
}
