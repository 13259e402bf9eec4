package main

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
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
