package guest

import (
	"fmt"
	"slices"
	"sync"
	"testing"
)

// TestKeyring: the latest list of keys is what is written last, in whatever
// order the guest gets to the host's messages.
func TestKeyring(t *testing.T) {
	cfg := Config{Users: []User{{Name: "bob"}}, SSHKeys: []string{"configured"}}
	for _, c := range []struct {
		name  string
		steps []string // "configure" or the key of a replacement
		want  []string // what is written
	}{
		{"configured", []string{"configure"}, []string{"bob configured"}},
		{"replaced", []string{"configure", "new"}, []string{"bob configured", "bob new"}},
		{"replaced during boot", []string{"new", "configure"}, []string{"bob new"}},
		{"twice during boot", []string{"new", "newer", "configure", "newest"}, []string{"bob newer", "bob newest"}},
		{"none", []string{"", "configure"}, []string{"bob "}},
	} {
		var got []string
		k := &keyring{write: func(users []User, owner []string) error {
			line := ""
			for _, u := range users {
				line += u.Name + " "
			}
			for _, key := range owner {
				line += key
			}
			got = append(got, line)
			return nil
		}}
		for _, s := range c.steps {
			var err error
			if s == "configure" {
				err = k.configure(cfg)
			} else {
				err = k.replace([]string{s})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: wrote %q, want %q", c.name, got, c.want)
		}
	}
}

// TestKeyringWritesOneAtATime: the files of two lists never mix.
func TestKeyringWritesOneAtATime(t *testing.T) {
	writing, last := false, ""
	k := &keyring{write: func(_ []User, owner []string) error {
		if writing {
			t.Error("two writers")
		}
		writing = true
		defer func() { writing = false }()
		last = owner[0]
		return nil
	}}
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			if err := k.replace([]string{fmt.Sprint("key ", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Go(func() {
		if err := k.configure(Config{SSHKeys: []string{"configured"}}); err != nil {
			t.Error(err)
		}
	})
	all.Wait()
	if last != k.owner[0] {
		t.Errorf("wrote %q last, holds %q", last, k.owner[0])
	}
}
