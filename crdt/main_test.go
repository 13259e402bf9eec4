package crdt

import (
	"flag"
	"os"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the test vectors in testdata")

// TestMain draws fewer cases than rapid would, so that the race detector stays
// bearable; FORMATION_SLOW=1 draws more, and -rapid.checks as many as it says (a
// thousand take ten minutes under -race on two busy cores).
func TestMain(m *testing.M) {
	flag.Parse()
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked {
		n := "20"
		if os.Getenv("FORMATION_SLOW") == "1" {
			n = "60"
		}
		if err := flag.Set("rapid.checks", n); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
