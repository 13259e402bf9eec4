package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
)

// form stays for as long as somebody should hold the pack and does not, and
// what it says when it leaves is what it heard last.
func TestStayUntilHeld(t *testing.T) {
	other := "bafyreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
	for _, tc := range []struct {
		name    string
		word    string
		wanted  int
		holds   bool // the one node has the pack
		pack    string
		stays   bool // until the limit
		says    string
		warning bool
	}{
		{"held", api.StatusSuccess, 1, true, somePack, false, "1 peer holds the pack: nothing here is needed", false},
		{"held by all who have claimed so far", api.StatusPending, 1, true, somePack, true, "1 peer holds the pack", false},
		{"held by more", api.StatusFailure, 1, true, somePack, false, "1 peer holds the pack: nothing here is needed", false},
		{"nobody wants it", api.StatusSuccess, 0, false, somePack, false, "nothing to stay for", false},
		{"a failure with nobody left", api.StatusFailure, 0, false, somePack, false, "nothing to stay for", false},
		{"another ship came between", api.StatusPending, 0, false, other, false, "nothing to stay for", false},
		{"nobody has claimed it yet", api.StatusPending, 0, false, somePack, true, "no peer has taken a replica yet", true},
		{"too few", api.StatusPending, 3, true, somePack, true, "1 peer holds the pack, and 3 should", true},
		{"it fails", api.StatusFailure, 2, true, somePack, false, "1 peer holds the pack, and 2 should", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHome(t)
			h.daemon.word, h.daemon.wanted = tc.word, tc.wanted
			inst := h.ships(crdt.Spec{Name: "web", Replicas: 1})
			if tc.pack != somePack {
				a, c, _ := h.app()
				if err := a.sign(context.Background(), c, api.Instance{ID: inst, Owner: stmt.KeyOf(h.owner)}, func(s *crdt.Spec) { s.Pack = tc.pack }); err != nil {
					t.Fatal(err)
				}
			}
			if tc.holds {
				n := crdt.Node{Holds: []string{somePack}}
				if err := h.daemon.SetNode(context.Background(), n); err != nil {
					t.Fatal(err)
				}
			}
			a, c, talk := h.app()
			limit := time.Minute
			if tc.stays {
				limit = 50 * time.Millisecond
			}
			begun := time.Now()
			err := a.stayUntilHeld(context.Background(), c, cid.MustParse(somePack), inst, nil, limit)
			if took := time.Since(begun); err != nil || took > 20*time.Second || tc.stays && took < limit {
				t.Errorf("after %s: %v", took, err)
			}
			if got := talk.String(); !strings.Contains(got, tc.says) || strings.Contains(got, "warning") != tc.warning {
				t.Errorf("says %q", got)
			}
		})
	}
}

// An answer that does not come before the limit is no answer of nothing.
func TestStayKeepsTheLastAnswer(t *testing.T) {
	h := newHome(t)
	h.daemon.wanted = 3
	inst := h.ships(crdt.Spec{Name: "web", Replicas: 1})
	end := make(chan struct{})
	defer close(end)
	var asked atomic.Int32
	h.daemon.onWanted = func() {
		if asked.Add(1) > 1 {
			<-end // the second answer never comes
		}
	}
	a, c, talk := h.app()
	if err := a.stayUntilHeld(context.Background(), c, cid.MustParse(somePack), inst, nil, 3*pollEvery/2); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%s the pack, and 3 should", hold(0)); !strings.Contains(talk.String(), want) {
		t.Errorf("says %q, want %q", talk, want)
	}
}

// While ship --wait waits for the replicas, other forms have the packs.
func TestShipGivesThePacksBack(t *testing.T) {
	h := newHome(t)
	h.daemon.listen(t)
	h.daemon.word = api.StatusSuccess // of what no node has claimed: nothing to stay for, and not ready
	dir := kit.DefaultDir("", os.Getenv).Store()
	id := putPack(t, dir, h.owner)
	talk := &listener{word: "there is nothing to stay for", heard: make(chan struct{})}
	a := &app{p: cli.NewPrinter(io.Discard, talk), stdin: strings.NewReader(""), stdout: io.Discard, stderr: talk, getenv: os.Getenv, running: true}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- a.runShip(ctx, id.String(), shipOptions{wait: waitReady, hold: time.Minute, given: func(string) bool { return false }})
	}()
	select {
	case <-talk.heard:
	case err := <-done:
		t.Fatalf("%v: %s", err, talk.b.String())
	}
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("it had not waited any more: %v", err)
	}
	if n := len(h.daemon.View().InstancesOf(stmt.KeyOf(h.owner))); n != 1 {
		t.Errorf("%d instances", n)
	}
}

// putPack puts a small pack into a store.
func putPack(t *testing.T, dir string, key ed25519.PrivateKey) cid.Cid {
	t.Helper()
	s, err := store.Open(store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	image := func(kind, format string) store.Entry {
		path := filepath.Join(t.TempDir(), kind)
		if err := os.WriteFile(path, bytes.Repeat([]byte(kind), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
		e, err := s.AddImage(context.Background(), path, kind, format)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	base, err := s.PutBase(context.Background(), store.Base{
		Name: "test:1", Kernel: image("kernel", "vmlinuz"), Initrd: image("initrd", "cpio"),
		Modules: image("modules", "squashfs"), Rootfs: image("rootfs", "squashfs"),
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.PutPack(context.Background(), store.Root{
		Name: "web", Base: base, Layers: []store.Entry{image("layer", "squashfs")},
		Run: store.RunConfig{VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Entrypoint: []string{"/bin/true"}},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
