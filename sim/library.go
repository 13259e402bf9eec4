package sim

import (
	"embed"
	"fmt"
	"path"
	"strings"
	"sync"

	"github.com/formthefog/formation/sim/scenario"
)

//go:embed scenarios/*.yaml
var files embed.FS

// Library is every scenario there is, by name. It panics when one that is built in
// does not parse, which a test sees to.
var Library = sync.OnceValue(func() []*scenario.Scenario {
	entries, err := files.ReadDir("scenarios")
	if err != nil {
		panic(err)
	}
	var out []*scenario.Scenario
	for _, e := range entries {
		raw, err := files.ReadFile(path.Join("scenarios", e.Name()))
		if err != nil {
			panic(err)
		}
		s, err := scenario.Parse(strings.TrimSuffix(e.Name(), ".yaml"), raw)
		if err != nil {
			panic(err)
		}
		out = append(out, s)
	}
	return out
})

// Find returns the scenario of a name.
func Find(name string) (*scenario.Scenario, error) {
	for _, s := range Library() {
		if s.Name == name {
			return s, nil
		}
	}
	return nil, fmt.Errorf("no scenario %q", name)
}
