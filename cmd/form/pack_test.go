package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// listener is a stderr that says when it has heard a word.
type listener struct {
	mu    sync.Mutex
	b     bytes.Buffer
	word  string
	heard chan struct{}
}

func (l *listener) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := strings.Contains(l.b.String(), l.word)
	l.b.Write(p)
	if !before && strings.Contains(l.b.String(), l.word) {
		close(l.heard)
	}
	return len(p), nil
}

// While one form works on the packs, another says so and waits for its turn.
func TestAnotherFormHasThePacks(t *testing.T) {
	h := newHome(t)
	s, err := store.Open(store.Config{Dir: kit.DefaultDir("", os.Getenv).Store()})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, talk := h.form("pack", "ls", "--timeout", "100ms"); code != api.ExitTimeout || !strings.Contains(talk, "another form") {
		t.Errorf("no time to wait: exit %d, %q", code, talk)
	}
	talk := &listener{word: "another form is working on the packs", heard: make(chan struct{})}
	var out bytes.Buffer
	done := make(chan int, 1)
	go func() { done <- run([]string{"pack", "ls", "--json"}, strings.NewReader(""), &out, talk) }()
	select {
	case <-talk.heard:
	case code := <-done:
		t.Fatalf("exit %d before the store was free: %q", code, talk.b.String())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != api.ExitOK || out.String() != "[]\n" {
		t.Errorf("after the other: exit %d, %q, %q", code, out.String(), talk.b.String())
	}
}

// A base stays while a pack that stays is built on it.
func TestNeeded(t *testing.T) {
	base, pack, other := cid.MustParse(somePack), cid.MustParse("bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"), cid.Undef
	list := []store.Info{{CID: base, Kind: "base"}, {CID: pack, Kind: "pack", Name: "web", Base: base}, {Kind: "base", Base: other}}
	for _, tc := range []struct {
		gone []cid.Cid
		ok   bool
	}{{nil, true}, {[]cid.Cid{pack}, true}, {[]cid.Cid{base, pack}, true}, {[]cid.Cid{pack, base}, true}, {[]cid.Cid{base}, false}} {
		if err := needed(list, tc.gone); (err == nil) != tc.ok || err != nil && exitOf(err) != api.ExitFailed {
			t.Errorf("%v: %v", tc.gone, err)
		}
	}
}

// Inspect's JSON has the manners of every other: seconds, peer IDs, no null
// list, and no secret.
func TestInspectJSON(t *testing.T) {
	id := cid.MustParse(somePack)
	author := stmt.KeyOf(testKey(1))
	full := &store.Root{
		Name: "web", Base: id, Author: author[:], Salt: []byte("salt"),
		Run: store.RunConfig{
			Users:  []store.User{{Name: "u", PasswordHash: "$6$x"}},
			Health: &store.Health{Kind: "tcp", Port: 80, Interval: 1500, Timeout: 2000, Retries: 3},
		},
	}
	for name, v := range map[string]any{
		"pack":     wireOf(id, full),
		"bare":     wireOf(id, &store.Root{Base: id}),
		"base":     wireBase{Base: &store.Base{}, Packages: orEmpty[string](nil)},
		"no lists": orEmpty[store.Port](nil),
	} {
		b, err := json.Marshal(v)
		// An entry that is not there has no root: that null is no list.
		text := strings.ReplaceAll(string(b), `"root":null`, "")
		if err != nil || strings.Contains(text, "null") || strings.Contains(text, "$6$") || strings.Contains(text, "_ms") || strings.Contains(text, "salt") {
			t.Errorf("%s: %s, %v", name, text, err)
		}
	}
	b, err := json.Marshal(wireOf(id, full))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"author":"` + author.String() + `"`, `"interval_seconds":1.5`, `"timeout_seconds":2`, `"layers":[]`, `"env":[]`,
		`"ssh_authorized_keys":[]`, `"password_hash":"[redacted]"`, `"cid":"` + somePack + `"`,
	} {
		if strings.Count(string(b), want) != 1 {
			t.Errorf("not once %s in %s", want, b)
		}
	}
}
