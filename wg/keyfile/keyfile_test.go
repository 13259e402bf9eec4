package keyfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	first, err := Load(path)
	if err != nil || first == (wgtypes.Key{}) {
		t.Fatal(err)
	}
	if again, err := Load(path); err != nil || again != first {
		t.Errorf("the second start has another key (%v)", err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	for _, tt := range []struct {
		text string
		mode os.FileMode
		want error
	}{
		{first.String() + "\n", 0o600, nil},
		{first.String(), 0o400, nil},
		{first.String(), 0o640, ErrOpen},
		{first.String(), 0o602, ErrOpen},
		{"", 0o600, ErrNoKey},
		{"AAAA", 0o600, ErrNoKey},
		{wgtypes.Key{}.String(), 0o600, ErrNoKey},
		{strings.Repeat("A", 65), 0o600, ErrNoKey},
	} {
		path := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		key, err := Load(path)
		if !errors.Is(err, tt.want) || (err == nil) != (key == first) {
			t.Errorf("%q of mode %04o: %v", tt.text, tt.mode, err)
		}
		if left, err := os.ReadFile(path); err != nil || string(left) != tt.text {
			t.Errorf("%q: it was changed to %q (%v)", tt.text, left, err)
		}
	}
}
