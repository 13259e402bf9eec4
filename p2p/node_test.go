package p2p

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const testNet = "abcdefgh12345678"

// club admits whoever presents the right word, and remembers what happened.
type club struct {
	word    string // presented
	want    string // asked of others
	mu      sync.Mutex
	inside  map[peer.ID]int
	gone    []peer.ID
	onAdmit func()
	clients bool // everyone is admitted as a client
}

func newClub(word string) *club {
	return &club{word: word, want: word, inside: make(map[peer.ID]int)}
}

func (c *club) Hello(peer.ID) ([]byte, error) { return []byte(c.word), nil }

func (c *club) Admit(_ context.Context, from peer.ID, hello []byte) (client bool, err error) {
	if c.onAdmit != nil {
		c.onAdmit()
	}
	if string(hello) != c.want {
		return false, fmt.Errorf("wrong word %q", hello)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside[from]++
	return c.clients, nil
}

func (c *club) Gone(p peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.inside, p)
	c.gone = append(c.gone, p)
}

func (c *club) has(p peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inside[p] > 0
}

func (c *club) left(p peer.ID) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, q := range c.gone {
		if q == p {
			n++
		}
	}
	return n
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// start runs a node on loopback until the test ends, or stop is called.
func start(t *testing.T, edit func(*Config)) (n *Node, stop func()) {
	t.Helper()
	cfg := Config{
		Key: newKey(t), Network: testNet, Admission: newClub("sesame"),
		Listen: []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"},
		tune:   tuning{backoffMin: 20 * time.Millisecond, backoffMax: 300 * time.Millisecond, explore: 200 * time.Millisecond},
	}
	if edit != nil {
		edit(&cfg)
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("Run did not return")
			}
		})
	}
	t.Cleanup(stop)
	<-n.Ready()
	return n, stop
}

// eventually polls until ok, and fails the test after a generous while.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func ctxT(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func tcpAddr(t *testing.T, n *Node) string  { return addrWith(t, n, "/tcp/") }
func quicAddr(t *testing.T, n *Node) string { return addrWith(t, n, "/quic-v1/") }

func addrWith(t *testing.T, n *Node, part string) string {
	t.Helper()
	for _, a := range n.Addrs() {
		if strings.Contains(a, part) {
			return a
		}
	}
	t.Fatalf("no %s among %v", part, n.Addrs())
	return ""
}

func TestAddrsShareOneFreePort(t *testing.T) {
	n, err := New(Config{
		Key: newKey(t), Network: testNet, Admission: newClub(""),
		Listen: []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	var ports []string
	for _, a := range n.Addrs() { // before Run
		m := ma.StringCast(a)
		for _, code := range []int{ma.P_TCP, ma.P_UDP} {
			if v, err := m.ValueForProtocol(code); err == nil {
				ports = append(ports, v)
			}
		}
		if !strings.HasSuffix(a, "/p2p/"+n.ID().String()) {
			t.Errorf("address %s does not name the peer", a)
		}
	}
	if len(ports) != 2 || ports[0] != ports[1] || ports[0] == "0" {
		t.Errorf("ports %v, want TCP and QUIC on one", ports)
	}
	if err := n.Run(ended); err != nil {
		t.Errorf("Run with an ended context: %v", err)
	}
	if err := n.Run(ended); err == nil {
		t.Error("second Run succeeded")
	}
	if _, err := n.Connect(context.Background(), n.Addrs0()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Connect after Run: %v, want ErrNotRunning", err)
	}
}

// Addrs0 is an address of the right form for a node that is closed.
func (n *Node) Addrs0() string { return "/ip4/127.0.0.1/tcp/1/p2p/" + n.ID().String() }

func TestTakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	other, _ := start(t, nil)
	for _, addr := range []string{
		fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port),
		fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", u.LocalAddr().(*net.UDPAddr).Port),
		strings.Split(tcpAddr(t, other), "/p2p/")[0],
		strings.Split(quicAddr(t, other), "/p2p/")[0],
	} {
		_, err := New(Config{Key: newKey(t), Network: testNet, Admission: newClub(""), Listen: []string{addr}})
		var le *ListenError
		if !errors.As(err, &le) || le.Addr != addr {
			t.Errorf("New(%s) = %v, want a ListenError naming it", addr, err)
		}
	}
}

func listenNothing(string, *net.UDPAddr) (net.PacketConn, error) {
	return nil, errors.New("no socket")
}

func TestConfigIsValidated(t *testing.T) {
	good := Config{Key: newKey(t), Network: testNet, Admission: newClub(""), Listen: []string{"/ip4/127.0.0.1/tcp/0"}}
	for name, edit := range map[string]func(*Config){
		"no key":              func(c *Config) { c.Key = nil },
		"no network":          func(c *Config) { c.Network = "" },
		"network with slash":  func(c *Config) { c.Network = "a/b" },
		"no admission":        func(c *Config) { c.Admission = nil },
		"nothing to listen":   func(c *Config) { c.Listen = nil },
		"listen on websocket": func(c *Config) { c.Listen = []string{"/ip4/127.0.0.1/tcp/0/ws"} },
		"listen on a name":    func(c *Config) { c.Listen = []string{"/dns4/localhost/tcp/0"} },
		"bootstrap, no peer":  func(c *Config) { c.Bootstrap = []string{"/ip4/127.0.0.1/tcp/1"} },
		"announce nonsense":   func(c *Config) { c.Announce = []string{"x"} },
		"simulated by nobody": func(c *Config) { c.Listen, c.Simulated = []string{"/ip4/127.0.0.1/udp/1/quic-v1"}, true },
		"simulated TCP":       func(c *Config) { c.ListenUDP, c.Simulated = listenNothing, true },
		"simulated anywhere": func(c *Config) {
			c.ListenUDP, c.Simulated, c.Listen = listenNothing, true, []string{"/ip4/0.0.0.0/udp/1/quic-v1"}
		},
	} {
		c := good
		edit(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestThreeNodesMeetThroughOne(t *testing.T) {
	a, _ := start(t, nil)
	boot := func(c *Config) { c.Bootstrap = []string{tcpAddr(t, a)} }
	b, _ := start(t, boot)
	c, _ := start(t, boot)
	// b and c know only a; the DHT introduces them.
	want := map[*Node][]peer.ID{a: {b.ID(), c.ID()}, b: {a.ID(), c.ID()}, c: {a.ID(), b.ID()}}
	for n, peers := range want {
		slices.Sort(peers)
		eventually(t, "full mesh", func() bool { return slices.Equal(n.Peers(), peers) })
	}
	for _, info := range b.PeerInfo() {
		if info.Client || !info.Direct || info.Since.IsZero() || len(info.Addrs) == 0 || info.Transport != "tcp" {
			t.Errorf("peer info %+v", info)
		}
	}
	eventually(t, "traffic is counted", func() bool {
		st := b.Stats()
		return st.Peers == 2 && st.Known == 2 && st.Total.In > 0 && st.Protocols[string(helloID(testNet))].Out > 0
	})
}

func TestStreams(t *testing.T) {
	for _, via := range []string{"tcp", "quic-v1"} {
		t.Run(via, func(t *testing.T) {
			a, _ := start(t, nil)
			b, _ := start(t, nil)
			var gotFrom atomic.Value
			a.Handle("echo/1", func(_ context.Context, from peer.ID, c net.Conn) {
				defer c.Close()
				gotFrom.Store(from)
				io.Copy(c, c) // what came back is checked by the other side
			})
			if _, err := b.Connect(ctxT(t), addrWith(t, a, "/"+via+"/")); err != nil {
				t.Fatal(err)
			}
			for range 3 { // the first negotiates, the others are lazy
				c, err := b.Open(ctxT(t), a.ID(), "echo/1")
				if err != nil {
					t.Fatal(err)
				}
				msg := bytes.Repeat([]byte("fog"), 100_000)
				go func() {
					if _, err := c.Write(msg); err != nil {
						t.Errorf("write: %v", err)
					}
					if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
						t.Errorf("close write: %v", err)
					}
				}()
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, msg) {
					t.Fatalf("echoed %d bytes, %v; want %d", len(got), err, len(msg))
				}
				if err := c.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			if gotFrom.Load() != b.ID() {
				t.Errorf("handler saw %v, want %v", gotFrom.Load(), b.ID())
			}
			// A deadline ends a read.
			c, err := b.Open(ctxT(t), a.ID(), "echo/1")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			var ne net.Error
			if _, err := c.Read(make([]byte, 1)); !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("read past the deadline: %v, want a timeout", err)
			}
			if _, err := b.Open(ctxT(t), a.ID(), "none/1"); err == nil {
				t.Error("opened a protocol that is not served")
			}
		})
	}
}

func TestClientUsesStreamsButIsNoPeer(t *testing.T) {
	a, _ := start(t, nil)
	a.Handle("hi/1", func(_ context.Context, _ peer.ID, c net.Conn) {
		defer c.Close()
		if _, err := io.WriteString(c, "hi"); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	cl, _ := start(t, func(c *Config) { c.ClientOnly, c.Listen = true, nil })
	network, id, err := Discover(ctxT(t), tcpAddr(t, a))
	if err != nil || network != testNet || id != a.ID() {
		t.Fatalf("Discover = %q, %v, %v", network, id, err)
	}
	if _, err := cl.Connect(ctxT(t), tcpAddr(t, a)); err != nil {
		t.Fatal(err)
	}
	c, err := cl.Open(ctxT(t), a.ID(), "hi/1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != "hi" {
		t.Fatalf("read %q, %v", got, err)
	}
	if len(cl.Addrs()) != 0 {
		t.Errorf("client listens on %v", cl.Addrs())
	}
	eventually(t, "server sees the client", func() bool { return a.Stats().Clients == 1 })
	if len(a.Peers()) != 0 || a.dht.RoutingTable().Find(cl.ID()) != "" {
		t.Errorf("server takes the client for a peer: %v", a.Peers())
	}
	if err := cl.Publish(ctxT(t), "x", nil); !errors.Is(err, ErrClientOnly) {
		t.Errorf("client Publish: %v", err)
	}
	if !slices.Equal(cl.Peers(), []peer.ID{a.ID()}) {
		t.Errorf("client's peers %v", cl.Peers())
	}
}

// What Admission takes for a client is one, whatever it says of itself.
func TestForcedClient(t *testing.T) {
	club := newClub("sesame")
	club.clients = true
	a, _ := start(t, func(c *Config) { c.Admission = club })
	b, _ := start(t, nil)
	listenTo(t, a, "x/1", nil)
	eb := listenTo(t, b, "x/1", nil)
	if _, err := b.Connect(ctxT(t), tcpAddr(t, a)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer is a client", func() bool { return a.Stats().Clients == 1 })
	eventually(t, "the other side takes part", func() bool { return len(b.Peers()) == 1 && b.dht.RoutingTable().Find(a.ID()) != "" })
	if err := a.Publish(ctxT(t), "x/1", []byte("from a")); err != nil {
		t.Fatal(err)
	}
	if len(a.Peers()) != 0 || a.dht.RoutingTable().Find(b.ID()) != "" {
		t.Errorf("the client counts as a peer: %v", a.Peers())
	}
	a.gossip.host.mu.Lock()
	told := a.gossip.host.out[b.ID()] != nil
	a.gossip.host.mu.Unlock()
	if told || eb.times("from a") != 0 {
		t.Error("a client is gossiped to")
	}
}

func TestDiscoverFindsNoNetwork(t *testing.T) {
	h := rawHost(t, nil)
	if _, _, err := Discover(ctxT(t), fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID())); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("Discover of a plain libp2p host: %v, want ErrNoNetwork", err)
	}
	if _, _, err := Discover(ctxT(t), "/ip4/127.0.0.1/tcp/1"); err == nil {
		t.Error("Discover without a peer ID succeeded")
	}
}

func TestDiscoverWaitsOutIdentify(t *testing.T) {
	// The peer must not hang up on a stranger before it is identified.
	a, _ := start(t, func(c *Config) { c.Logger = slog.New(slog.DiscardHandler) })
	for _, addr := range []string{tcpAddr(t, a), quicAddr(t, a)} {
		for range 5 {
			if network, _, err := Discover(ctxT(t), addr); err != nil || network != testNet {
				t.Fatalf("Discover(%s) = %q, %v", addr, network, err)
			}
		}
	}
}

// pubOf is a key's public half in libp2p's form.
func pubOf(t *testing.T, k ed25519.PrivateKey) crypto.PubKey {
	t.Helper()
	p, err := crypto.UnmarshalEd25519PublicKey(k.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return p
}
