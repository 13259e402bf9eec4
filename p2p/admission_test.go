package p2p

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	msmux "github.com/multiformats/go-multistream"
)

// rawHost is a libp2p host that keeps no rule of ours.
func rawHost(t *testing.T, opt libp2p.Option) host.Host {
	t.Helper()
	opts := []libp2p.Option{libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableMetrics()}
	if opt != nil {
		opts = append(opts, opt)
	}
	h, err := libp2p.New(opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close raw host: %v", err)
		}
	})
	return h
}

func info(t *testing.T, addr string) peer.AddrInfo {
	t.Helper()
	pi, err := peer.AddrInfoFromString(addr)
	if err != nil {
		t.Fatal(err)
	}
	return *pi
}

func TestRefusalTellsTheReason(t *testing.T) {
	for _, via := range []string{"/tcp/", "/quic-v1/"} {
		for name, tc := range map[string]struct {
			word, want string // of the dialler
			byPeer     bool
		}{
			"peer refuses us": {word: "guess", want: "sesame", byPeer: true},
			"we refuse peer":  {word: "sesame", want: "other", byPeer: false},
		} {
			t.Run(name+via, func(t *testing.T) {
				ac := newClub("sesame")
				a, _ := start(t, func(c *Config) { c.Admission = ac })
				bc := newClub(tc.word)
				bc.want = tc.want
				b, _ := start(t, func(c *Config) { c.Admission = bc })
				_, err := b.Connect(ctxT(t), addrWith(t, a, via))
				var refused *RefusedError
				if !errors.As(err, &refused) || !errors.Is(err, ErrRefused) {
					t.Fatalf("Connect: %v, want a RefusedError", err)
				}
				if refused.ByPeer != tc.byPeer || refused.Peer != a.ID() || !strings.Contains(refused.Reason, "wrong word") {
					t.Errorf("refusal %+v", refused)
				}
				eventually(t, "connection closed", func() bool {
					return len(a.inner.Network().Conns()) == 0 && len(b.inner.Network().Conns()) == 0
				})
				if len(a.Peers())+len(b.Peers()) != 0 {
					t.Error("a refused peer counts as a peer")
				}
				// Whoever was let in by one side has left that side again.
				eventually(t, "Gone is told", func() bool { return !ac.has(b.ID()) && !bc.has(a.ID()) })
			})
		}
	}
}

func TestOtherNetworkIsRefused(t *testing.T) {
	a, _ := start(t, nil)
	b, _ := start(t, func(c *Config) { c.Network = "zzzz" })
	_, err := b.Connect(ctxT(t), tcpAddr(t, a))
	var refused *RefusedError
	if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "zzzz") {
		t.Errorf("Connect across networks: %v, want a refusal naming the network", err)
	}
}

// A stranger that speaks libp2p, even one that forges the protocol names, can
// use identify and ping and nothing else.
func TestStrangerCanUseNothing(t *testing.T) {
	var served atomic.Int32
	ac := newClub("sesame")
	a, _ := start(t, func(c *Config) {
		c.Admission = ac
		c.tune.hello = 2 * time.Second
		c.Blocks, c.Source = newBlocks(), oneLeaf{data: []byte("x")}
	})
	eventually(t, "exchange runs", a.blocks.Running)
	a.Handle("api/1", func(_ context.Context, _ peer.ID, c net.Conn) {
		served.Add(1)
		c.Close()
	})
	if err := a.Subscribe(ctxT(t), "t", func(context.Context, peer.ID, []byte) bool {
		served.Add(1)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	h := rawHost(t, nil)
	if err := h.Connect(ctxT(t), info(t, tcpAddr(t, a))); err != nil {
		t.Fatal(err)
	}
	if res := <-ping.Ping(ctxT(t), h, a.ID()); res.Error != nil {
		t.Errorf("ping before admission: %v", res.Error)
	}
	protocols, err := h.Peerstore().GetProtocols(a.ID())
	if err != nil || len(protocols) < 10 {
		t.Fatalf("identify told %v, %v", protocols, err)
	}
	open := map[protocol.ID]bool{"/ipfs/id/1.0.0": true, "/ipfs/id/push/1.0.0": true, "/ipfs/ping/1.0.0": true, helloID(testNet): true}
	tried := 0
	for _, p := range append(protocols, "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/autonat/1.0.0") {
		if open[p] {
			continue
		}
		tried++
		if s, err := h.NewStream(ctxT(t), a.ID(), p); err == nil {
			if err := s.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			s.Write([]byte{1, 0}) // may fail already: the stream is being reset
			if n, err := s.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%s answered a stranger: %d bytes, %v", p, n, err)
			}
		}
	}
	if tried < 10 {
		t.Errorf("tried only %d of %v", tried, protocols)
	}
	// Gossip from a stranger's pubsub under our topic's name does not arrive.
	ps, err := pubsub.NewGossipSub(ctxT(t), h, pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign), pubsub.WithNoAuthor())
	if err != nil {
		t.Fatal(err)
	}
	topic, err := ps.Join("/formd/t/" + testNet)
	if err != nil {
		t.Fatal(err)
	}
	if err := topic.Publish(ctxT(t), []byte("forged")); err != nil {
		t.Fatal(err)
	}
	// And a hello that is garbage, is too long or comes twice is no way in.
	for name, bad := range map[string][]byte{
		"garbage": {9, 9, 9, 9}, "too long": {1, 0, 0xff, 0xff}, "wrong word": {1, 0, 0, 1, 'x'},
	} {
		h := rawHost(t, nil)
		if err := h.Connect(ctxT(t), info(t, tcpAddr(t, a))); err != nil {
			t.Fatal(err)
		}
		s, err := h.NewStream(ctxT(t), a.ID(), helloID(testNet))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(bad); err != nil {
			t.Fatal(err)
		}
		if _, refused, err := readVerdict(s); err != nil || !refused {
			t.Errorf("%s: refused=%v, %v", name, refused, err)
		}
		eventually(t, name+": connection closed", func() bool { return len(h.Network().ConnsToPeer(a.ID())) == 0 })
	}
	// Silence is cut off, too.
	eventually(t, "silent stranger is disconnected", func() bool {
		return len(a.inner.Network().ConnsToPeer(h.ID())) == 0
	})
	if served.Load() != 0 || len(a.Peers()) != 0 || ac.has(h.ID()) {
		t.Errorf("strangers were served %d times", served.Load())
	}
	if a.dht.RoutingTable().Size() != 0 {
		t.Error("a stranger is in the routing table")
	}
}

// A peer that was let in, but has not let us in, is not used either.
func TestWeHoldOurStreamsUntilThePeerAdmitsUs(t *testing.T) {
	a, _ := start(t, func(c *Config) { c.tune.hello = time.Second })
	h := rawHost(t, nil)
	var opened atomic.Int32
	h.SetStreamHandler(helloID(testNet), func(s network.Stream) {
		_, _, err := readHello(s) // and never a verdict
		if err != nil {
			s.Reset()
		}
	})
	h.SetStreamHandler(protocolID("api/1", testNet), func(s network.Stream) { opened.Add(1); s.Close() })
	h.SetStreamHandler("/meshsub/1.1.0", func(s network.Stream) { opened.Add(1); s.Close() })
	if err := h.Connect(ctxT(t), info(t, tcpAddr(t, a))); err != nil {
		t.Fatal(err)
	}
	s, err := h.NewStream(ctxT(t), a.ID(), helloID(testNet))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeHello(s, []byte("sesame"), false); err != nil {
		t.Fatal(err)
	}
	if _, refused, err := readVerdict(s); err != nil || refused {
		t.Fatalf("good word refused: %v %v", refused, err)
	}
	if _, err := a.Open(ctxT(t), h.ID(), "api/1"); !errors.Is(err, ErrRefused) {
		t.Errorf("Open to a peer that gives no verdict: %v, want ErrRefused", err)
	}
	if opened.Load() != 0 {
		t.Error("streams were opened to a peer that had not admitted us")
	}
	eventually(t, "connection closed", func() bool { return len(h.Network().Conns()) == 0 })
}

func TestGoneComesOnceWithTheLastConnection(t *testing.T) {
	ac := newClub("sesame")
	a, _ := start(t, func(c *Config) { c.Admission = ac })
	b, stopB := start(t, nil)
	if _, err := b.Connect(ctxT(t), tcpAddr(t, a)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "first proof", func() bool { return len(a.Peers()) == 1 })
	c2 := secondConn(t, b, info(t, quicAddr(t, a)))
	eventually(t, "two proofs", func() bool {
		ac.mu.Lock()
		defer ac.mu.Unlock()
		return ac.inside[b.ID()] == 2
	})
	if err := c2.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one connection left", func() bool { return len(a.inner.Network().ConnsToPeer(b.ID())) == 1 })
	if ac.left(b.ID()) != 0 || len(a.Peers()) != 1 {
		t.Error("Gone, or not a peer, with a connection left")
	}
	stopB()
	eventually(t, "Gone", func() bool { return ac.left(b.ID()) == 1 })
	eventually(t, "no entry left in the gate", func() bool {
		a.gate.mu.Lock()
		defer a.gate.mu.Unlock()
		return len(a.gate.peers) == 0
	})
}

// secondConn proves a connection beside the one there is, below b's swarm, as
// two peers get that dial each other at once.
func secondConn(t *testing.T, b *Node, pi peer.AddrInfo) io.Closer {
	t.Helper()
	c, err := b.inner.Network().(*swarm.Swarm).TransportForDialing(pi.Addrs[0]).Dial(ctxT(t), pi.Addrs[0], pi.ID)
	if err != nil {
		t.Fatal(err)
	}
	mux := msmux.NewMultistreamMuxer[protocol.ID]()
	mux.AddHandler(helloID(testNet), func(_ protocol.ID, s io.ReadWriteCloser) error {
		defer s.Close()
		if _, _, err := readHello(s); err != nil {
			return err
		}
		return writeVerdict(s, nil)
	})
	go func() {
		for {
			s, err := c.AcceptStream()
			if err != nil {
				return
			}
			go func() {
				if mux.Handle(s) != nil {
					s.Reset()
				}
			}()
		}
	}()
	s, err := c.OpenStream(ctxT(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := msmux.SelectProtoOrFail(helloID(testNet), io.ReadWriteCloser(s)); err != nil {
		t.Fatal(err)
	}
	if err := writeHello(s, []byte("sesame"), false); err != nil {
		t.Fatal(err)
	}
	if _, refused, err := readVerdict(s); err != nil || refused {
		t.Fatalf("second connection refused: %v %v", refused, err)
	}
	return c
}
