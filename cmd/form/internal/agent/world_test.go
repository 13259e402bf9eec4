package agent

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.zx2c4.com/wireguard/tun/netstack"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/carrier"
	"github.com/formthefog/formation/wg/wgtest"
)

func keyOf(name string) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	return ed25519.NewKeyFromSeed(seed)
}

func pub(name string) stmt.Key { return stmt.KeyOf(keyOf(name)) }

const netName = "test"

var netID = stmt.NewNetworkID(netName, pub("root"))

// world is olga, who runs an instance of two replicas on the nodes one and two,
// her laptop, and a node that knows it all.
type world struct {
	t      *testing.T
	seq    uint64
	host   *crdt.Replica
	nodes  map[string]*crdt.Replica // by name, each with what it says itself
	laptop wg.Key                   // private
	guests map[string]wg.Key        // private, by the name of the host
	space  wg.Space
	id     string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, nodes: map[string]*crdt.Replica{}, guests: map[string]wg.Key{}, laptop: privateKey(t)}
	var err error
	if w.space, err = wg.NewSpace(netID, netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	w.host = w.open(crdt.ReplicaConfig{Key: keyOf("one"), Root: pub("root")})
	for _, name := range []string{"one", "two", "three"} {
		w.nodes[name], w.guests[name] = w.open(crdt.ReplicaConfig{Key: keyOf(name)}), privateKey(t)
	}
	w.admit("one", stmt.RoleNode)
	w.admit("two", stmt.RoleNode)
	w.admit("olga", stmt.RoleOwner)
	olga := w.author()
	id, raws, err := olga.Create(crdt.Spec{Name: "app", Replicas: 2, Pack: "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"})
	w.all(raws, err)
	w.id = id
	w.all(olga.SetDevice(crdt.Device{Key: pub("laptop"), Name: "laptop", MeshKey: stmt.Key(w.laptop.PublicKey())}))
	w.claim("one", 0)
	w.claim("two", 1)
	return w
}

func privateKey(t *testing.T) wg.Key {
	k, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (w *world) open(c crdt.ReplicaConfig) *crdt.Replica {
	c.Dir, c.Network, c.Engine = w.t.TempDir(), netID, crdt.NewModel()
	r, err := crdt.Open(c)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := r.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return r
}

func (w *world) author() *crdt.Author {
	a, err := crdt.NewAuthor(keyOf("olga"), netID, w.host.OwnerStatements(pub("olga")))
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// all has the node hear what somebody says.
func (w *world) all(raws [][]byte, err error) {
	w.t.Helper()
	if err == nil {
		_, err = w.host.Submit(context.Background(), raws...)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) member(m stmt.MemberBody) {
	w.t.Helper()
	w.seq++
	raw, err := stmt.SignMember(keyOf("root"), netID, m, nil, 1, w.seq)
	w.all([][]byte{raw}, err)
}

func (w *world) admit(name string, role stmt.Role) {
	w.member(stmt.MemberBody{Key: pub(name), Role: role})
}

// says is a node's claim on a slot of the instance, unpublished.
func (w *world) says(node string, slot int, change func(*crdt.Claim)) []byte {
	w.t.Helper()
	public := w.guests[node].PublicKey()
	i := identity(node, w.id, slot)
	c := crdt.Claim{
		Instance: w.id, Owner: pub("olga"), Slot: slot, Phase: crdt.ClaimRunning, Ready: true, Generation: 1,
		MeshKey: base64.StdEncoding.EncodeToString(public[:]), Address: w.space.Candidate4(i, 0).String(), Endpoint: "203.0.113.7:51820",
	}
	if change != nil {
		change(&c)
	}
	if err := w.nodes[node].SetClaims(context.Background(), []crdt.Claim{c}); err != nil {
		w.t.Fatal(err)
	}
	raws := w.nodes[node].ClaimStatements(w.id)
	return raws[len(raws)-1]
}

func (w *world) claim(node string, slot int) { w.all([][]byte{w.says(node, slot, nil)}, nil) }

func identity(node, instance string, slot int) []byte {
	n := pub(node)
	return append(append(append([]byte("r"), n[:]...), instance...), byte(slot))
}

func (w *world) address(node string, slot int) netip.Addr {
	return w.space.Address6(identity(node, w.id, slot))
}

func (w *world) address4(node string, slot int) netip.Addr {
	return w.space.Candidate4(identity(node, w.id, slot), 0)
}

func (w *world) identity() Identity {
	return Identity{Network: netID, Owner: pub("olga"), Device: pub("laptop")}
}

func (w *world) testimony() Testimony {
	return Testimony{Name: netName, Root: pub("root"), Statements: w.host.DeviceStatements(pub("olga"))}
}

// machine is a host with a guest, on loopback.
type machine struct {
	carrier *carrier.Carrier
	guest   *netstack.Net
}

// machine starts the host of a node whose guest has those addresses.
func (w *world) machine(node string, slot int) *machine {
	t := w.t
	t.Helper()
	socket, err := carrier.Listen(0, netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{}
	m.carrier, err = carrier.New(carrier.Config{Socket: socket, Streams: noStreams{}, Now: Boottime,
		Addresses: func() []netip.AddrPort {
			return []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), socket.Port())}
		}})
	if err != nil {
		t.Fatal(err)
	}
	guest := wgtest.NewGuest(t, w.guests[node], []netip.Addr{w.address(node, slot), w.address4(node, slot)}, func(b []byte, to netip.AddrPort) { m.carrier.Send("guest", b, to) })
	laptop := []netip.Addr{w.identity().Address(w.space), w.identity().Address4(w.space)}
	if err := guest.Configure([]wgtypes.PeerConfig{{PublicKey: w.laptop.PublicKey(), ReplaceAllowedIPs: true, AllowedIPs: wgtest.Routes(laptop...)}}); err != nil {
		t.Fatal(err)
	}
	m.guest = guest.Net
	m.carrier.Stations([32]byte{}, map[string]carrier.Station{"guest": {Public: guest.Public, Deliver: guest.Deliver}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.carrier.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, socket.Close()); err != nil {
			t.Error(err)
		}
	})
	return m
}

type noStreams struct{}

func (noStreams) OpenStream(context.Context, peer.ID) (io.ReadWriteCloser, error) {
	return nil, errors.New("a host opens none to a device")
}

// serve has the guest answer what is sent to a port with the same and a word.
func (m *machine) serve(t *testing.T, port uint16, at netip.Addr, word string) {
	t.Helper()
	l, err := m.guest.ListenTCPAddrPort(netip.AddrPortFrom(at, port))
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer c.Close()
				if b, err := io.ReadAll(c); err == nil {
					_, _ = c.Write(append(b, word...)) // the other end judges
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); open.Wait() })
}

// swarm is a [Swarm] of machines of this process.
type swarm struct {
	w *world

	mu       sync.Mutex
	machines map[peer.ID]*machine
	says     Testimony // instead of the world's, when it has a name
	fail     error
}

func (s *swarm) set(fail error, says Testimony) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail, s.says = fail, says
}

func (s *swarm) Testimony(context.Context) (Testimony, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil || s.says.Name != "" {
		return s.says, s.fail
	}
	return s.w.testimony(), nil
}

func (s *swarm) OpenStream(_ context.Context, host peer.ID) (io.ReadWriteCloser, error) {
	s.mu.Lock()
	m := s.machines[host]
	s.mu.Unlock()
	if m == nil {
		return nil, errors.New("no such host")
	}
	ours, theirs := net.Pipe()
	go m.carrier.Accept(peer.ID(pub("form").PeerID()), theirs)
	return ours, nil
}

func (s *swarm) Seen(peer.ID) []netip.AddrPort { return nil }
func (s *swarm) Outside() []peer.ID            { return nil }

// mesh starts the laptop's device.
func (w *world) mesh(s Swarm) *Mesh {
	w.t.Helper()
	m, err := New(Config{Identity: w.identity(), Key: w.laptop, Swarm: s, Now: Boottime})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// agent starts the laptop's agent, and returns its socket and what ends when it
// does.
func (w *world) agent(s Swarm, idle time.Duration) (socket string, ended <-chan error) {
	w.t.Helper()
	p := w.place()
	l, err := p.Listen()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	m := w.mesh(s)
	go func() {
		done <- Serve(ctx, m, l, idle)
		close(done)
	}()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
	return p.Socket(), done
}

func (w *world) place() Place {
	w.t.Helper()
	p, err := PlaceOf(w.identity(), func(string) string { return filepath.Join(shortDir(w.t), "run") })
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}
