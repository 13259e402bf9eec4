package p2p

import (
	"context"
	"crypto/ed25519"
	"io"
	"net"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	ma "github.com/multiformats/go-multiaddr"
)

// Who can be dialled by nobody is reached through a member that both know, and by
// a stranger to that member not.
func TestReachedThroughAMember(t *testing.T) {
	relay, _ := start(t, nil)
	boot := func(c *Config) { c.Bootstrap = []string{relay.Addrs()[0]} }
	ends := map[peer.ID]bool{} // filled before anybody runs
	keys := [2]func(*Config){}
	for i := range keys {
		key := newKey(t)
		id, err := peer.IDFromPublicKey(pubKey(t, key))
		if err != nil {
			t.Fatal(err)
		}
		ends[id] = true
		keys[i] = func(c *Config) {
			boot(c)
			c.Key = key
			c.allowed = func(p peer.ID, a ma.Multiaddr, _ bool) bool { return !ends[p] || isRelayAddr(a) }
		}
	}
	a, _ := start(t, keys[0])
	b, _ := start(t, keys[1])
	for _, n := range []*Node{a, b} {
		eventually(t, "the relay is met", func() bool { return len(n.Peers()) >= 1 && supportsRelay(n.inner, relay.ID()) })
	}
	tell, err := b.inner.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	if err != nil {
		t.Fatal(err)
	}
	defer tell.Close()
	if err := tell.Emit(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}); err != nil {
		t.Fatal(err)
	}
	b.Handle("echo", func(_ context.Context, _ peer.ID, c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c) // the reader sees what is missing
	})
	var c net.Conn
	eventually(t, "a stream to who cannot be dialled", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		clearDialBackoff(a.inner, b.ID())
		c, err = a.Open(ctx, b.ID(), "echo")
		return err == nil
	})
	defer c.Close()
	const much = 1 << 20 // the library's own limit is 128 KiB
	go func() { _, _ = c.Write(make([]byte, much)) }()
	if n, err := io.ReadFull(c, make([]byte, much)); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
	if r, ok := c.(interface{ Relayed() bool }); !ok || !r.Relayed() {
		t.Error("the stream goes straight")
	}
	for _, n := range []*Node{a, b} {
		if got := n.Outside(); len(got) != 1 || got[0] != relay.ID() {
			t.Errorf("outside of it are %v", got)
		}
	}
	if got := relay.Outside(); len(got) != 0 {
		t.Errorf("the relay has dialled nobody, and has %v outside", got)
	}
}

func pubKey(t *testing.T, key ed25519.PrivateKey) crypto.PubKey {
	t.Helper()
	k, err := crypto.UnmarshalEd25519PublicKey(key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return k
}
