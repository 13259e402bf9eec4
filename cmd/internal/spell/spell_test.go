package spell

import "testing"

func TestNearest(t *testing.T) {
	words := []string{"validate", "build", "ship", "inspect"}
	for in, want := range map[string]string{
		"vlidate": "validate", "biuld": "build", "SHIP": "ship", "inspct": "inspect", "xyzzy": "", "": "",
	} {
		if got := Nearest(in, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", in, got, want)
		}
	}
}
