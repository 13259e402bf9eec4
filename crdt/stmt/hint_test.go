package stmt

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"testing"
)

func TestHint(t *testing.T) {
	net := NewNetworkID("test", Key{})
	priv := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	self, other := KeyOf(priv), Key{1}
	sign := func(h HintBody) []byte {
		raw, err := SignHint(priv, net, h, 3, 9)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	session, err := SignSession(priv, net, SessionBody{})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw []byte
		err error
	}{
		"suspicion":           {sign(HintBody{Peer: other, Epoch: 2, Count: 1}), nil},
		"contradiction":       {sign(HintBody{Peer: self, Alive: true, Epoch: 3, Count: 2}), nil},
		"alive by another":    {sign(HintBody{Peer: other, Alive: true}), ErrShape},
		"suspicion of itself": {sign(HintBody{Peer: self}), ErrShape},
		"of nobody":           {sign(HintBody{}), ErrShape},
		"another kind":        {session, ErrShape},
		"too large":           {make([]byte, MaxHint+1), ErrTooLarge},
		"empty":               {nil, ErrEncoding},
	} {
		s, h, err := PeekHint(tc.raw, net)
		if !errors.Is(err, tc.err) || (err != nil) != (tc.err != nil) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
			continue
		}
		if err == nil && (s.Author != self || s.Epoch != 3 || s.Seq != 9 || s.CheckSignature() != nil || len(tc.raw) > 256) {
			t.Errorf("%s: %+v, %+v of %d bytes", name, s, h, len(tc.raw))
		}
	}
}

func FuzzPeekHint(f *testing.F) {
	net := NewNetworkID("test", Key{})
	priv := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	raw, err := SignHint(priv, net, HintBody{Peer: Key{1}, Epoch: 2, Count: 1}, 3, 9)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, h, err := PeekHint(raw, net)
		if err != nil {
			return
		}
		if s.Kind != KindHint || h.Peer.IsZero() || h.Alive != (h.Peer == s.Author) {
			t.Errorf("accepted %+v, %+v", s, h)
		}
	})
}
