package p2p

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// cut forbids connections between chosen nodes, as a firewall between them
// would, and records what was dialled.
type cut struct {
	mu      sync.Mutex
	sides   map[peer.ID]map[peer.ID]bool
	dialled map[string]bool
}

func newCut() *cut {
	return &cut{sides: make(map[peer.ID]map[peer.ID]bool), dialled: make(map[string]bool)}
}

func (c *cut) set(a, b *Node) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, pair := range [][2]peer.ID{{a.ID(), b.ID()}, {b.ID(), a.ID()}} {
		if c.sides[pair[0]] == nil {
			c.sides[pair[0]] = make(map[peer.ID]bool)
		}
		c.sides[pair[0]][pair[1]] = true
	}
}

func (c *cut) heal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.sides)
}

func (c *cut) of(self peer.ID) func(peer.ID, ma.Multiaddr, bool) bool {
	return func(p peer.ID, a ma.Multiaddr, inbound bool) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !inbound {
			c.dialled[a.String()] = true
		}
		return !c.sides[self][p]
	}
}

// walled starts a node behind the firewall.
func walled(t *testing.T, fw *cut, boot ...string) *Node {
	t.Helper()
	n, _ := start(t, func(c *Config) {
		self, err := peer.IDFromPublicKey(pubOf(t, c.Key))
		if err != nil {
			t.Fatal(err)
		}
		c.allowed = fw.of(self)
		c.Bootstrap = boot
	})
	return n
}

func TestPartitionHeals(t *testing.T) {
	fw := newCut()
	a := walled(t, fw)
	b, c := walled(t, fw, tcpAddr(t, a)), walled(t, fw, tcpAddr(t, a))
	all := []*Node{a, b, c}
	mesh := func(size int) func() bool {
		return func() bool {
			return !slices.ContainsFunc(all, func(n *Node) bool { return len(n.Peers()) != size })
		}
	}
	eventually(t, "full mesh", mesh(2))
	var ears []*ear
	for _, n := range all {
		ears = append(ears, listenTo(t, n, "p/1", nil))
	}
	tell(t, c, "p/1", "before", ears[0], ears[1])

	// c alone on one side.
	fw.set(c, a)
	fw.set(c, b)
	for _, n := range []*Node{a, b} {
		if err := n.Drop(c.ID(), "partition"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "cut", func() bool { return len(c.Peers()) == 0 && len(a.Peers()) == 1 && len(b.Peers()) == 1 })
	if err := c.Publish(ctxT(t), "p/1", []byte("lost")); err != nil {
		t.Fatal(err)
	}
	tell(t, a, "p/1", "meanwhile", ears[1])
	if ears[0].times("lost") != 0 {
		t.Fatal("the partition leaks")
	}

	healed := time.Now()
	fw.heal()
	eventually(t, "full mesh again", mesh(2))
	if took := time.Since(healed); took > 5*time.Second { // backoffMax is 0.3 s here
		t.Errorf("re-peering took %v", took)
	}
	tell(t, c, "p/1", "after", ears[0], ears[1])
	tell(t, a, "p/1", "back", ears[1], ears[2])
}

func TestRestartFindsRememberedPeers(t *testing.T) {
	dir := t.TempDir()
	a, _ := start(t, nil)
	b, _ := start(t, func(c *Config) { c.Bootstrap = []string{tcpAddr(t, a)} })
	key := newKey(t)
	c, stop := start(t, func(cfg *Config) {
		cfg.Key, cfg.Dir, cfg.Bootstrap = key, dir, []string{tcpAddr(t, a)}
	})
	eventually(t, "three meet", func() bool { return len(c.Peers()) == 2 })
	eventually(t, "addresses are known", func() bool {
		c.redial.mu.Lock()
		defer c.redial.mu.Unlock()
		for _, p := range []peer.ID{a.ID(), b.ID()} {
			if e := c.redial.book.entries[p]; e == nil || len(e.addrs) == 0 {
				return false
			}
		}
		return true
	})
	stop()
	raw, err := os.ReadFile(filepath.Join(dir, peersFile))
	if err != nil || !bytes.Contains(raw, []byte(b.ID().String())) {
		t.Fatalf("peers.json: %s, %v", raw, err)
	}
	again, _ := start(t, func(cfg *Config) { cfg.Key, cfg.Dir = key, dir }) // no bootstrap
	eventually(t, "remembered peers are found", func() bool { return len(again.Peers()) == 2 })

	// Another network, and a damaged file, remember nobody and stop nothing.
	for name, content := range map[string][]byte{"other network": raw, "damaged": raw[:len(raw)/2]} {
		d := t.TempDir()
		if err := os.WriteFile(filepath.Join(d, peersFile), content, 0o600); err != nil {
			t.Fatal(err)
		}
		n, stop := start(t, func(cfg *Config) {
			cfg.Dir = d
			if name == "other network" {
				cfg.Network = "elsewhere"
			}
		})
		if known := n.Stats().Known; known != 0 {
			t.Errorf("%s: %d peers remembered", name, known)
		}
		stop()
	}
}

func TestOnlyGivenAddressesAreDialled(t *testing.T) {
	fw := newCut()
	rec := func(c *Config) { c.allowed = fw.of("") }
	a, _ := start(t, rec)
	edit := func(c *Config) { rec(c); c.Bootstrap = []string{tcpAddr(t, a)} }
	b, _ := start(t, edit)
	c, _ := start(t, edit)
	eventually(t, "full mesh", func() bool { return len(a.Peers()) == 2 && len(b.Peers()) == 2 && len(c.Peers()) == 2 })
	var ours []string
	for _, n := range []*Node{a, b, c} {
		for _, addr := range n.Addrs() {
			ours = append(ours, strings.Split(addr, "/p2p/")[0])
		}
	}
	// Let the DHT look around: nothing else may come of it.
	<-b.dht.ForceRefresh()
	fw.mu.Lock()
	defer fw.mu.Unlock()
	for d := range fw.dialled {
		if through := strings.HasPrefix(d, "/p2p/") && strings.HasSuffix(d, "/p2p-circuit"); !through && !slices.Contains(ours, d) {
			t.Errorf("dialled %s, which is none of %v", d, ours)
		}
	}
	if len(fw.dialled) == 0 {
		t.Error("the recorder saw nothing")
	}
}

func TestRunLeavesNoGoroutine(t *testing.T) {
	once := func() {
		a, stopA := start(t, nil)
		b, stopB := start(t, func(c *Config) { c.Bootstrap = []string{tcpAddr(t, a)} })
		eventually(t, "meet", func() bool { return len(a.Peers()) == 1 && len(b.Peers()) == 1 })
		listenTo(t, a, "x/1", nil)
		stopB()
		stopA()
	}
	once() // what libraries start once for all
	before := runtime.NumGoroutine()
	for quiet := 0; quiet < 20; quiet++ { // until none has ended for a second
		time.Sleep(50 * time.Millisecond)
		if n := runtime.NumGoroutine(); n < before {
			before, quiet = n, 0
		}
	}
	for range 3 {
		once()
	}
	var after int
	deadline := time.Now().Add(15 * time.Second)
	for after = runtime.NumGoroutine(); after > before+2 && time.Now().Before(deadline); after = runtime.NumGoroutine() {
		time.Sleep(50 * time.Millisecond)
	}
	if after > before+2 {
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines before, %d after:\n%s", before, after, buf[:runtime.Stack(buf, true)])
	}
}
