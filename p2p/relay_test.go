package p2p

import (
	"context"
	"crypto/ed25519"
	"fmt"
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
	"pgregory.net/rapid"
)

// relayedEnds starts a relay and nodes that reach each other by it alone; the last
// has a place there.
func relayedEnds(t *testing.T, ends int, edit func(*Config)) (relay *Node, nodes []*Node) {
	t.Helper()
	relay, _ = start(t, edit)
	apart := map[peer.ID]bool{} // filled before anybody runs
	var keys []ed25519.PrivateKey
	for range ends {
		key := newKey(t)
		id, err := peer.IDFromPublicKey(pubKey(t, key))
		if err != nil {
			t.Fatal(err)
		}
		apart[id] = true
		keys = append(keys, key)
	}
	for _, key := range keys {
		n, _ := start(t, func(c *Config) {
			c.Key, c.Bootstrap = key, []string{relay.Addrs()[0]}
			c.allowed = func(p peer.ID, a ma.Multiaddr, _ bool) bool { return !apart[p] || isRelayAddr(a) }
		})
		eventually(t, "the relay is met", func() bool { return len(n.Peers()) >= 1 && supportsRelay(n.inner, relay.ID()) })
		nodes = append(nodes, n)
	}
	tell, err := nodes[ends-1].inner.EventBus().Emitter(new(event.EvtLocalReachabilityChanged), eventbus.Stateful)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tell.Close() })
	if err := tell.Emit(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}); err != nil {
		t.Fatal(err)
	}
	return relay, nodes
}

// opened is a stream to who cannot be dialled.
func opened(t *testing.T, from *Node, to peer.ID, protocol string) net.Conn {
	t.Helper()
	var c net.Conn
	eventually(t, "a stream to who cannot be dialled", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		clearDialBackoff(from.inner, to)
		var err error
		c, err = from.Open(ctx, to, protocol)
		return err == nil
	})
	t.Cleanup(func() { _ = c.Close() })
	if r, ok := c.(interface{ Relayed() bool }); !ok || !r.Relayed() {
		t.Error("the stream goes straight")
	}
	return c
}

// Who can be dialled by nobody is reached through a member that both know, and by
// a stranger to that member not.
func TestReachedThroughAMember(t *testing.T) {
	relay, ends := relayedEnds(t, 2, nil)
	a, b := ends[0], ends[1]
	b.Handle("echo", func(_ context.Context, _ peer.ID, c net.Conn) {
		defer c.Close()
		_, _ = io.Copy(c, c) // the reader sees what is missing
	})
	c := opened(t, a, b.ID(), "echo")
	const much = 1 << 20 // the library's own limit is 128 KiB
	go func() { _, _ = c.Write(make([]byte, much)) }()
	if n, err := io.ReadFull(c, make([]byte, much)); err != nil {
		t.Errorf("after %d bytes: %v", n, err)
	}
	if s := relay.Stats().Relay; s.Circuits < 1 || s.Bytes < 2*much || s.Waited > 0 {
		t.Errorf("counted %+v", s)
	}
	for _, n := range ends {
		if got := n.Outside(); len(got) != 1 || got[0] != relay.ID() {
			t.Errorf("outside of it are %v", got)
		}
	}
	if got := relay.Outside(); len(got) != 0 {
		t.Errorf("the relay has dialled nobody, and has %v outside", got)
	}
}

// A member that sends more than its budget through a relay is slowed, and loses
// nothing; another, to the same member, is not.
func TestRelayBudget(t *testing.T) {
	each := budget{rate: 512 << 10, burst: 1 << 20}
	relay, ends := relayedEnds(t, 3, func(c *Config) { c.tune.relayEach = each })
	greedy, modest, to := ends[0], ends[1], ends[2]
	to.Handle("count", func(_ context.Context, _ peer.ID, c net.Conn) {
		defer c.Close()
		n, err := io.Copy(io.Discard, c)
		if err == nil {
			fmt.Fprintln(c, n)
		}
	})
	send := func(from *Node, much int) error {
		c := opened(t, from, to.ID(), "count")
		if _, err := c.Write(make([]byte, much)); err != nil {
			return err
		}
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			return err
		}
		var n int
		if _, err := fmt.Fscanln(c, &n); err != nil || n != much {
			return fmt.Errorf("%d of %d bytes, %w", n, much, err)
		}
		return nil
	}
	const much = 2 << 20
	begun := time.Now()
	if err := send(greedy, much); err != nil {
		t.Errorf("the greedy: %v", err)
	}
	least := time.Duration((much - each.burst) / each.rate * float64(time.Second))
	if took := time.Since(begun); took < least {
		t.Errorf("over a budget of %v/s, %v bytes in %v, before %v", each.rate, much, took, least)
	}
	waited := relay.Stats().Relay.Waited
	if err := send(modest, 256<<10); err != nil {
		t.Errorf("the modest: %v", err)
	}
	if s := relay.Stats().Relay; waited == 0 || s.Waited-waited > 64<<10 { // the greedy one's acknowledgements may
		t.Errorf("%d bytes waited for the greedy one, then %+v", waited, s)
	}
}

// Members' accounts against a dumb model: in no time does more of one pass than
// its burst and its rate since, nobody waits for another's debts while all have
// room together, and everybody's together are bounded too.
func TestRelayMeter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		each, all := budget{100, 1000}, budget{250, 2500}
		start := time.Unix(1e9, 0)
		now := start
		m := newRelayMeter(each, all, func() time.Time { return now })
		type piece struct {
			of int
			n  float64
			at time.Time // it passes
		}
		var passed []piece
		for range rapid.IntRange(1, 60).Draw(t, "pieces") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			p, n := rapid.IntRange(0, 4).Draw(t, "member"), rapid.IntRange(1, 900).Draw(t, "bytes")
			wait := m.take(peer.ID(fmt.Sprint(p)), n)
			passed = append(passed, piece{p, float64(n), now.Add(wait)})
			own, together := 0.0, 0.0
			for _, x := range passed {
				together += x.n
				if x.of == p {
					own += x.n
				}
			}
			if own <= each.burst && together <= all.burst && wait > 0 {
				t.Fatalf("%d waits %v within its burst", p, wait)
			}
		}
		for _, last := range passed {
			own, together, since := 0.0, 0.0, last.at.Sub(start).Seconds()
			for _, x := range passed {
				if x.at.After(last.at) {
					continue
				}
				together += x.n
				if x.of == last.of {
					own += x.n
				}
			}
			const rounded = 1e-3
			if own > each.burst+each.rate*since+rounded || together > all.burst+all.rate*since+rounded {
				t.Fatalf("in %vs %v bytes of %d passed, %v of all", since, own, last.of, together)
			}
		}
	})
}

// Who makes up many members does not make the relay remember them all, nor free
// those that owe.
func TestRelayAccountsAreBounded(t *testing.T) {
	now := time.Unix(1e9, 0)
	m := newRelayMeter(budget{1, 10}, budget{1e9, 1e9}, func() time.Time { return now })
	m.take("greedy", 1e6)
	for i := range 3 * maxRelayAccounts {
		m.take(peer.ID(fmt.Sprint(i)), 5)
	}
	if len(m.of) > maxRelayAccounts {
		t.Errorf("%d accounts", len(m.of))
	}
	if m.take("greedy", 1) == 0 {
		t.Error("what the greedy one owes is forgotten")
	}
	if m.take("late", 1) == 0 {
		t.Error("those beyond the bound owe nothing together")
	}
	now = now.Add(time.Minute)
	if m.take("later", 5) > 0 || len(m.of) > 2 {
		t.Errorf("%d accounts when all but one have paid", len(m.of))
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
