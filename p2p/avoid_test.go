package p2p

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Whom a node avoids it neither dials nor lets in.
func TestAvoidedPeers(t *testing.T) {
	nobody := func(c *Config) { c.Avoid = func(peer.ID) bool { return true } }
	shy, _ := start(t, nobody)
	other, _ := start(t, nil)
	if _, err := shy.Connect(t.Context(), tcpAddr(t, other)); err == nil {
		t.Error("a peer that is avoided was dialled")
	}
	if _, err := other.Connect(t.Context(), tcpAddr(t, shy)); err == nil {
		t.Error("a peer that is avoided was let in")
	}
}
