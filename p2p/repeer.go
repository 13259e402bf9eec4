package p2p

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// dialTimeout bounds one dial of the book, admission included.
	dialTimeout = 10 * time.Second
	// fillDelay lets the peers of a fresh connection settle before the DHT is
	// asked for more; fillEvery is the least time between two such questions.
	fillDelay = time.Second
	fillEvery = time.Minute
	fillTime  = 20 * time.Second
	// trimEvery forgets traffic counters of peers and protocols long idle.
	trimEvery = time.Hour
)

// redialer drives the book: it redials what was lost, remembers what was met,
// and asks the DHT for more peers while there are few.
type redialer struct {
	n    *Node
	mu   sync.Mutex
	book *book
	poke chan struct{} // of capacity 1: something changed
}

func (r *redialer) wake() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// with runs f on the book and wakes the loop.
func (r *redialer) with(f func(b *book, now time.Time)) {
	r.mu.Lock()
	f(r.book, time.Now())
	r.mu.Unlock()
	r.wake()
}

// run sleeps until something happens or is due; an idle, connected node is
// woken by nothing but its own hourly trim.
func (r *redialer) run(ctx context.Context) error {
	var lastFill, lastTrim, dirtySince time.Time
	filledFor := -1
	lastTrim = time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.save()
			return nil
		case <-r.poke:
		case <-timer.C:
		}
		if ctx.Err() != nil {
			continue
		}
		r.mu.Lock()
		now := time.Now()
		dial, next := r.book.plan(now)
		connected, dirty := r.book.connected(), r.book.dirty
		r.mu.Unlock()
		soonest := func(t time.Time) {
			if next.IsZero() || t.Before(next) {
				next = t
			}
		}
		for _, pi := range dial {
			r.n.tasks.run(func() { r.dial(pi) })
		}
		if dirty && r.n.cfg.Dir != "" {
			if dirtySince.IsZero() {
				dirtySince = now
			}
			if due := dirtySince.Add(r.n.tune.save); now.Before(due) {
				soonest(due)
			} else {
				r.save()
				dirtySince = time.Time{}
			}
		}
		// Ask for more peers when the number of peers has changed, not for ever.
		if !r.n.cfg.ClientOnly && connected > 0 && connected < wantPeers && connected != filledFor {
			wait := fillDelay
			if connected == filledFor || !lastFill.IsZero() && now.Sub(lastFill) < fillDelay {
				wait = fillEvery
			}
			switch due := lastFill.Add(wait); {
			case lastFill.IsZero():
				lastFill = now
				soonest(now.Add(fillDelay))
			case now.Before(due):
				soonest(due)
			default:
				lastFill, filledFor = now, connected
				r.n.tasks.run(func() { r.fill() })
			}
		}
		if now.Sub(lastTrim) >= trimEvery {
			lastTrim = now
			r.n.bytes.TrimIdle(now.Add(-trimEvery))
		}
		soonest(lastTrim.Add(trimEvery))
		timer.Reset(max(time.Until(next), 10*time.Millisecond))
	}
}

func (r *redialer) dial(pi peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(r.n.ctx, dialTimeout)
	defer cancel()
	clearDialBackoff(r.n.inner, pi.ID)
	err := r.n.host.Connect(ctx, pi)
	if err != nil && r.n.ctx.Err() == nil {
		r.n.log.Debug("dial failed", "peer", pi.ID, "err", err)
	}
	r.with(func(b *book, now time.Time) {
		if err != nil {
			b.failed(pi.ID, now, errors.Is(err, ErrRefused))
			return
		}
		b.dialed(pi.ID)
	})
}

// fill walks the DHT towards ourselves; the walk connects to whom it finds.
func (r *redialer) fill() {
	ctx, cancel := context.WithTimeout(r.n.ctx, fillTime)
	defer cancel()
	found, err := r.n.dht.GetClosestPeers(ctx, string(r.n.ID()))
	if err != nil {
		r.n.log.Debug("walk the DHT", "err", err)
	}
	for _, p := range found {
		if addrs := r.n.inner.Peerstore().Addrs(p); len(addrs) > 0 {
			r.with(func(b *book, _ time.Time) { b.offer(peer.AddrInfo{ID: p, Addrs: addrs}) })
		}
	}
}

func (r *redialer) save() {
	if r.n.cfg.Dir == "" {
		return
	}
	r.mu.Lock()
	peers := r.book.remembered(time.Now())
	r.book.dirty = false
	r.mu.Unlock()
	if err := savePeers(r.n.cfg.Dir, r.n.cfg.Network, peers); err != nil {
		r.n.log.Warn("remembered peers are not saved", "err", err)
	}
}

// watchIdentify learns the addresses that connected peers say they listen on.
func (n *Node) watchIdentify(ctx context.Context) error {
	sub, err := n.inner.EventBus().Subscribe([]any{
		new(event.EvtPeerIdentificationCompleted),
	})
	if err != nil {
		return err
	}
	defer sub.Close() // its error is that the bus has closed already
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-sub.Out():
			if !ok {
				return nil
			}
			if ev, ok := e.(event.EvtPeerIdentificationCompleted); ok {
				pi := peer.AddrInfo{ID: ev.Peer, Addrs: worthKeeping(ev.ListenAddrs)}
				n.redial.with(func(b *book, _ time.Time) { b.learn(pi) })
			}
		}
	}
}

// worthKeeping drops addresses through relays, which change with the relay, and
// more than the book keeps.
func worthKeeping(addrs []ma.Multiaddr) []ma.Multiaddr {
	out := make([]ma.Multiaddr, 0, maxAddrs)
	for _, a := range addrs {
		if len(out) < maxAddrs && !isRelayAddr(a) {
			out = append(out, a)
		}
	}
	return out
}

// peerUp is told when a peer becomes admitted, peerDown when its last admitted
// connection closed.
func (n *Node) peerUp(p peer.ID) {
	client := n.gate.isClient(p)
	n.log.Info("peer connected", "peer", p, "client", client)
	if client || n.cfg.ClientOnly {
		return
	}
	select {
	case n.joined <- struct{}{}:
	default:
	}
	pi := peer.AddrInfo{ID: p, Addrs: worthKeeping(n.inner.Peerstore().Addrs(p))}
	n.redial.with(func(b *book, now time.Time) { b.up(pi, now) })
	if c := n.gate.conn(p, true); c != nil {
		n.tasks.run(func() { n.measure(p, c) })
	} else { // it left before it was noted
		n.redial.with(func(b *book, now time.Time) { b.down(p, now) })
	}
}

func (n *Node) peerDown(p peer.ID) {
	n.log.Info("peer disconnected", "peer", p)
	n.near.forget(p)
	n.redial.with(func(b *book, now time.Time) { b.down(p, now) })
}

// notifiee follows the host's connections.
type notifiee struct{ n *Node }

func (notifiee) Listen(network.Network, ma.Multiaddr)      {}
func (notifiee) ListenClose(network.Network, ma.Multiaddr) {}

func (f notifiee) Connected(_ network.Network, c network.Conn) {
	f.n.gate.add(c)
	f.n.tasks.run(func() { f.n.watch(c) })
}

func (f notifiee) Disconnected(_ network.Network, c network.Conn) {
	down, wasIn := f.n.gate.remove(c)
	p := c.RemotePeer()
	if wasIn {
		// Apart from this goroutine: Admit of another connection may be running.
		if !f.n.tasks.enter() {
			f.n.release(p)
		} else {
			go func() {
				defer f.n.tasks.leave()
				f.n.release(p)
			}()
		}
	}
	if down {
		f.n.peerDown(p)
	}
}
