package scenario

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// docs/scenarios.md has every verb, in the words of Verbs.
func TestVerbsAreDocumented(t *testing.T) {
	var b strings.Builder
	b.WriteString("| Verb | What happens | Fields, those in bold needed |\n|---|---|---|\n")
	for _, v := range Verbs {
		var takes []string
		for _, f := range v.takes {
			name := "`" + f + "`"
			for _, n := range v.needs {
				if n == f {
					name = "**" + name + "**"
				}
			}
			if f == "kind" {
				name += " (" + strings.Join(v.kinds, ", ") + ")"
			}
			takes = append(takes, name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.Name, v.About, strings.Join(takes, ", "))
	}
	const file = "../../docs/scenarios.md"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(raw), "TestVerbsAreDocumented -->\n")
	_, tail, end := strings.Cut(rest, "<!-- end of verbs -->")
	if !ok || !end {
		t.Fatal("no place for the verbs in it")
	}
	want := head + "TestVerbsAreDocumented -->\n" + b.String() + "<!-- end of verbs -->" + tail
	if string(raw) == want {
		return
	}
	if os.Getenv("REWRITE") == "" {
		t.Fatal("the verbs have changed: REWRITE=1 go test ./sim/scenario -run TestVerbsAreDocumented")
	}
	if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
