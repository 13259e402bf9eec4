package fogvm

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/formthefog/formation/fogvm/guest"
)

// TestReasonsAreBounded: the guest writes its console, and what the console
// says becomes a reason in a signed statement of bounded size.
func TestReasonsAreBounded(t *testing.T) {
	s := &shim{dir: t.TempDir(), log: testLogger(t)}
	s.update(func(st *Status) { st.Reason = "the guest's kernel panicked: " + strings.Repeat("\x1b[31m", 4000) })
	var saved Status
	if err := readJSONFile(filepath.Join(s.dir, stateFile), &saved); err != nil {
		t.Fatal(err)
	}
	if n := len(saved.Reason); n == 0 || n > guest.MaxReason || strings.Contains(saved.Reason, "\x1b") {
		t.Errorf("a reason of %d bytes: %q", n, saved.Reason)
	}
}
