package live

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

// node is one member's machine: what stays over its restarts, and what runs.
type node struct {
	swarm  *Swarm
	i      int
	key    ed25519.PrivateKey
	id     peer.ID
	member []byte // the root's word for it
	disk   *crdt.Disk
	lives  int // starts so far

	up      bool
	net     *p2p.Node
	state   *crdt.Replica
	cancel  context.CancelFunc
	running *errgroup.Group
}

func (s *Swarm) newNode(i int) (*node, error) {
	n := &node{swarm: s, i: i, key: s.key("node", i), disk: crdt.NewDisk(), cancel: func() {}, running: new(errgroup.Group)}
	key := stmt.KeyOf(n.key)
	n.id = peer.ID(key.PeerID())
	var err error
	n.member, err = stmt.SignMember(s.root, s.id, stmt.MemberBody{Key: key, Role: stmt.RoleNode}, nil, 0, uint64(i)+1)
	return n, err
}

func listens(node int) string { return fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", address(node), port) }

// maxKnown is how many addresses a node is told of at its start, as by formd.
const maxKnown = 32

// start puts the parts together as formd does.
func (n *node) start() (err error) {
	if n.up {
		return nil
	}
	log := slog.New(slog.DiscardHandler)
	if n.swarm.cfg.Logger != nil {
		log = n.swarm.cfg.Logger(n.i)
	}
	n.state, err = crdt.Open(crdt.ReplicaConfig{
		Disk: n.disk, Key: n.key, Network: n.swarm.id, Root: stmt.KeyOf(n.swarm.root),
		Engine: crdt.NewModel(), Returning: n.lives > 0, Logger: log,
		// Nothing is heard of peers before the node is there.
		Offence: func(p peer.ID, reason crdt.Reason) { n.net.Offence(p, reason.String()) },
	})
	if err != nil {
		return err
	}
	if err := n.connect(log); err != nil {
		return errors.Join(err, n.state.Close())
	}
	n.lives++
	n.run()
	return nil
}

func (n *node) connect(log *slog.Logger) error {
	first := [][]byte{n.member}
	if n.i == n.swarm.cfg.Founders[0] {
		any, err := stmt.SignMember(n.swarm.root, n.swarm.id, stmt.MemberBody{Role: stmt.RoleOwner, AnyOwner: true}, nil, 1, 1)
		if err != nil {
			return err
		}
		first = append(first, any)
	}
	if _, err := n.state.Submit(context.Background(), first...); err != nil {
		return fmt.Errorf("own membership: %w", err)
	}
	hello, err := stmt.EncodeHello(stmt.Hello{Member: n.member})
	if err != nil {
		return err
	}
	cfg := p2p.Config{
		Key: n.key, Network: n.swarm.id.String(), Listen: []string{listens(n.i)},
		Admission: admission{hello, n.state}, Logger: log, Simulated: true,
		ListenUDP: func(_ string, addr *net.UDPAddr) (net.PacketConn, error) { return n.swarm.net.listen(n.i, addr) },
	}
	for _, i := range n.swarm.cfg.Founders {
		if o := n.swarm.nodes[i]; o != n {
			cfg.Bootstrap = append(cfg.Bootstrap, listens(o.i)+"/p2p/"+o.id.String())
		}
	}
	for _, o := range n.state.View().Nodes() { // as a ticket's peers may be gone
		if o.Key != stmt.KeyOf(n.key) && len(cfg.Bootstrap) < maxKnown {
			cfg.Bootstrap = append(cfg.Bootstrap, o.Addrs...)
		}
	}
	n.net, err = p2p.New(cfg)
	return err
}

// run lets the parts run, and has the node say who it is.
func (n *node) run() {
	ctx, cancel := context.WithCancel(context.Background())
	n.state.SetTransport(n.net, n.net)
	n.running, ctx = errgroup.WithContext(ctx)
	n.cancel, n.up = cancel, true
	net, state := n.net, n.state
	n.running.Go(func() error { return net.Run(ctx) })
	n.running.Go(func() error { return state.Run(ctx) })
	n.running.Go(func() error {
		err := state.SetNode(ctx, crdt.Node{
			Addrs: net.Addrs(), Version: "sim", Total: crdt.Resources{CPUs: 8, Memory: 16 << 30, Disk: 200 << 30},
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
}

// wait returns when nothing of the node runs any more.
func (n *node) wait() error {
	n.up = false
	if err := n.running.Wait(); err != nil {
		return fmt.Errorf("node %d: %w", n.i, err)
	}
	return nil
}

// crash ends the node at once: peers hear nothing of it. Of what it wrote that is
// left which becomes of its disk.
func (n *node) crash(becomes func(*crdt.Disk) *crdt.Disk) {
	if !n.up {
		return
	}
	net := n.swarm.net
	net.change(func() { net.mute[n.i] = true })
	n.disk = becomes(n.disk)
	n.cancel()
	_ = n.wait() // that it could not tidy up is what a crash is
	net.change(func() { net.mute[n.i] = false })
}

// admission lets members in, by the statement they bring or by what is known.
type admission struct {
	hello []byte
	state *crdt.Replica
}

func (a admission) Hello(peer.ID) ([]byte, error) { return a.hello, nil }

func (a admission) Admit(ctx context.Context, from peer.ID, hello []byte) (client bool, err error) {
	h, err := stmt.DecodeHello(hello)
	if err != nil {
		return false, fmt.Errorf("hello: %w", err)
	}
	key, err := stmt.KeyOfPeerID(string(from))
	if err != nil {
		return false, err
	}
	if len(h.Member) > 0 {
		if _, _, err := a.state.Admit(ctx, h.Member, stmt.Key{}); err != nil && !errors.Is(err, crdt.ErrStale) {
			return false, fmt.Errorf("membership: %w", err)
		}
	}
	if !a.state.View().IsMember(key, stmt.RoleNode) {
		return false, fmt.Errorf("%s is not a member of this network", key)
	}
	return false, nil
}

func (admission) Gone(peer.ID) {}
