package agent

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/wg"
)

func TestSilence(t *testing.T) {
	a, b := wg.Key{1}, wg.Key{2}
	then := time.Unix(1000, 0)
	for _, c := range []struct {
		name string
		do   func(s *silence)
		at   time.Duration
		seen time.Time
		want bool
	}{
		{"nobody", func(*silence) {}, 0, time.Time{}, false},
		{"another", func(s *silence) { s.note(b, 0, time.Time{}) }, 0, time.Time{}, false},
		{"just now", func(s *silence) { s.note(a, 0, time.Time{}) }, 0, time.Time{}, true},
		{"as before", func(s *silence) { s.note(a, 0, then) }, silentFor - 1, then, true},
		{"long ago", func(s *silence) { s.note(a, 0, then) }, silentFor, then, false},
		{"again since", func(s *silence) { s.note(a, 0, then); s.note(a, silentFor, then) }, silentFor, then, true},
		{"a handshake", func(s *silence) { s.note(a, 0, time.Time{}) }, 0, then, false},
		{"another handshake", func(s *silence) { s.note(a, 0, then) }, 0, then.Add(time.Second), false},
		{"an answer", func(s *silence) { s.note(a, 0, then); s.forget(a) }, 0, then, false},
		{"the oldest of too many", func(s *silence) {
			for i := range maxSilent + 1 {
				s.note(wg.Key{1, byte(i), byte(i >> 8)}, time.Duration(i), then)
			}
		}, 0, then, false},
		{"the next of too many", func(s *silence) {
			s.note(a, 1, then)
			for i := range maxSilent {
				s.note(wg.Key{3, byte(i), byte(i >> 8)}, time.Duration(2*i), then)
			}
		}, 1, then, true},
	} {
		var s silence
		c.do(&s)
		if got := s.is(a, c.at, c.seen); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
		if _, held := s.of[a]; held != c.want || len(s.of) > maxSilent {
			t.Errorf("%s: it is remembered: %v, with %d", c.name, held, len(s.of))
		}
	}
}

// Nobody in a haste waits a second time for a peer that does not answer. It is tried
// meanwhile: when it answers nobody is told otherwise.
func TestSilentPeerIsNotWaitedFor(t *testing.T) {
	w := newWorld(t)
	s := &swarm{w: w, machines: map[peer.ID]*machine{}}
	socket, _ := w.agent(s, time.Hour)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	to := Target{Instance: w.id, Node: pub("one")}
	asks := func(hasty bool) error {
		patience, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		p, err := Reach(patience, socket, to, hasty)
		if err == nil {
			err = p.Close()
		}
		return err
	}
	if err := asks(true); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("of a peer that was never tried: %v", err)
	}
	err := asks(true)
	for errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil { // a slow machine has not asked often enough
		err = asks(true)
	}
	if !errors.Is(err, ErrSilent) {
		t.Fatalf("of a peer that does not answer: %v", err)
	}
	if err := asks(false); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who insists is told %v", err)
	}
	host := w.machine("one", 0)
	host.serve(t, 8080, w.address("one", 0), " from one")
	s.mu.Lock()
	s.machines[peer.ID(pub("one").PeerID())] = host
	s.mu.Unlock()
	// Nobody who insists asks: the agent's own tries bring it back.
	for err = asks(true); errors.Is(err, ErrSilent) && ctx.Err() == nil; err = asks(true) {
		select {
		case <-ctx.Done():
		case <-time.After(pingEvery):
		}
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := echo(ctx, socket, to, 8080, "hello", " from one"); err != nil {
		t.Error(err)
	}
}
