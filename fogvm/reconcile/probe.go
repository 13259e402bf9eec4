package reconcile

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/boottime"
)

// Bare protocol names of the probes.
const (
	ProtoProbe    = "probe/1"     // 8 bytes, echoed; again and again on one stream
	ProtoProbeVia = "probe-via/1" // a 32-byte key; one byte, 1 when that node answered
)

// Timing and bounds of the probes; the rest is live.Config's.
const (
	probeTick    = 250 * time.Millisecond
	peersEvery   = 4               // ticks between two looks at who there is
	probeTimeout = 2 * time.Second // an answer after that is not waited for
	viaTimeout   = probeTimeout + time.Second
	probing      = 128 // probes at once, our own and those for others
	serving      = 32  // indirect probes for others at once
	// idleProbe is how long a stream of probes may be silent: dead peers are
	// probed every ten seconds, others oftener.
	idleProbe = time.Minute
)

// Streams is what probing needs of a host; *p2p.Node has these methods.
type Streams interface {
	Open(ctx context.Context, p peer.ID, proto string) (net.Conn, error)
	Handle(proto string, h func(ctx context.Context, from peer.ID, c net.Conn))
}

// ProberConfig of a Prober. Self, Streams and View are required.
type ProberConfig struct {
	Self    stmt.Key
	Streams Streams
	View    func() *crdt.View
	// Key, of Self, signs hints, which travel by Gossip. Without Gossip the node
	// neither tells nor hears any, and probes alone.
	Key    ed25519.PrivateKey
	Gossip Gossip
	Now    func() time.Duration // since boot; nil: boottime.Now
	Times  live.Config          // zero: its defaults
	Logger *slog.Logger
}

// Prober drives a live.Detector with real probes: it tells which nodes answer.
// What it finds is this node's own measurement; of that only suspicions leave it, as
// hints, which others may look into. Its methods
// are safe for concurrent use.
type Prober struct {
	cfg     ProberConfig
	changed chan struct{}
	events  chan live.Event
	probes  chan struct{} // one token per probe in progress
	serve   chan struct{} // one token per indirect probe for others
	hints   *hints        // nil without Gossip
	ticks   int           // so far; owned by Run

	mu       sync.Mutex
	interest []stmt.Key
	detector *live.Detector
	stepped  time.Duration // when it last was
	probed   map[stmt.Key]bool
	dead     map[stmt.Key]time.Duration
	streams  map[stmt.Key]net.Conn // idle ones: whoever probes takes it out
	closed   bool
}

// NewProber makes a Prober; Run starts it.
func NewProber(cfg ProberConfig) *Prober {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = boottime.Now
	}
	var seed [8]byte
	rand.Read(seed[:]) // never fails (crypto/rand)
	p := &Prober{
		cfg: cfg, changed: make(chan struct{}, 1), events: make(chan live.Event, 256),
		probes: make(chan struct{}, probing), serve: make(chan struct{}, serving),
		detector: live.New(cfg.Self, cfg.Times, binary.BigEndian.Uint64(seed[:])),
		probed:   map[stmt.Key]bool{}, dead: map[stmt.Key]time.Duration{},
		streams: map[stmt.Key]net.Conn{},
	}
	if cfg.Gossip != nil {
		p.hints = newHints(cfg.Key, cfg.Gossip, cfg.View, cfg.Now, p.heard)
	}
	return p
}

// SetInterest replaces the nodes whose death matters to this node.
func (p *Prober) SetInterest(nodes []stmt.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interest = nodes
}

// Changed has an element after Dead or Sees has changed.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Dead are the nodes confirmed dead, and since when, counted from boot. A node that
// slept has confirmed nothing.
func (p *Prober) Dead() map[stmt.Key]time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slept() {
		return map[stmt.Key]time.Duration{}
	}
	out := make(map[stmt.Key]time.Duration, len(p.dead))
	for k, t := range p.dead {
		out[k] = t
	}
	return out
}

// Sees says whether a node was heard of, since this one last slept, and is not
// confirmed dead.
func (p *Prober) Sees(k stmt.Key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.detector.Status(k)
	return !p.slept() && s.Contact != 0 && s.State != live.Dead
}

// slept says, under mu, that what the detector holds is from before a sleep that it
// has not noticed yet.
func (p *Prober) slept() bool { return p.cfg.Now()-p.stepped > boottime.Gap }

// Live is alive, suspect, dead, or unknown for a node that was not probed yet.
func (p *Prober) Live(k stmt.Key) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if k != p.cfg.Self && !p.probed[k] {
		return "unknown"
	}
	return p.detector.Status(k).State.String()
}

// Run probes and answers probes until ctx ends, and then returns nil.
func (p *Prober) Run(ctx context.Context) error {
	p.cfg.Streams.Handle(ProtoProbe, p.echo)
	p.cfg.Streams.Handle(ProtoProbeVia, p.echoVia)
	defer p.closeStreams()
	var probes sync.WaitGroup
	defer probes.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.hints != nil {
		if err := p.cfg.Gossip.Subscribe(ctx, TopicHint, p.hints.validate); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
	}
	tick := time.NewTicker(probeTick)
	defer tick.Stop()
	for {
		var ev live.Event
		select {
		case <-ctx.Done():
			return nil
		case ev = <-p.events:
		case <-tick.C:
			ev = live.Tick{}
		}
		p.handle(ctx, &probes, p.cfg.Now(), ev)
	}
}

// handle refreshes the peers at every peersEvery-th tick and passes ev on.
func (p *Prober) handle(ctx context.Context, probes *sync.WaitGroup, now time.Duration, ev live.Event) {
	if _, isTick := ev.(live.Tick); isTick {
		if p.ticks%peersEvery == 0 {
			p.setPeers(now)
		}
		p.ticks++
	}
	p.step(ctx, probes, now, ev)
}

// setPeers tells the detector who there is: the nodes with a register. A member that
// never published one, or whose register has aged out, is nobody to wait for.
func (p *Prober) setPeers(now time.Duration) {
	var all []stmt.Key // sorted, as Nodes is
	epochs := map[stmt.Key]uint64{}
	for _, n := range p.cfg.View().Nodes() {
		all, epochs[n.Key] = append(all, n.Key), n.Epoch
	}
	unknown := func(k stmt.Key) bool {
		_, known := slices.BinarySearchFunc(all, k, stmt.Key.Compare)
		return !known
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	interest := slices.DeleteFunc(slices.Clone(p.interest), unknown)
	p.detector.Step(now, live.Peers{All: all, Interest: interest, Epochs: epochs}) // what a sleep changes shows below
	for k := range p.dead {
		if unknown(k) || p.detector.Status(k).State != live.Dead {
			delete(p.dead, k)
		}
	}
	maps.DeleteFunc(p.probed, func(k stmt.Key, _ bool) bool { return unknown(k) })
}

// step advances the detector and does what it says.
func (p *Prober) step(ctx context.Context, probes *sync.WaitGroup, now time.Duration, ev live.Event) {
	p.mu.Lock()
	changed := false
	if c, ok := ev.(live.Contact); ok {
		s := p.detector.Status(c.Key)
		changed = s.Contact == 0 && s.State != live.Dead // a peer that is seen now
	}
	effects := p.detector.Step(now, ev)
	p.stepped = now
	for _, e := range effects {
		switch e := e.(type) {
		case live.Ping:
			p.probed[e.To] = true
		case live.Changed:
			changed = p.note(e) || changed
		}
	}
	p.mu.Unlock()
	for _, e := range effects {
		switch e := e.(type) {
		case live.Ping:
			p.spawn(probes, func() { p.ping(ctx, e) })
		case live.PingReq:
			for _, via := range e.Via {
				p.spawn(probes, func() { p.pingVia(ctx, via, e) })
			}
		case live.Tell:
			if p.hints != nil {
				p.spawn(probes, func() { p.tell(ctx, e) })
			}
		}
	}
	if changed {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
}

func (p *Prober) tell(ctx context.Context, e live.Tell) {
	if err := p.hints.tell(ctx, e.Hint); err != nil && ctx.Err() == nil {
		p.cfg.Logger.Debug("hint", "peer", e.Peer, "err", err) // others tell, or probe by themselves
	}
}

// heard takes a hint in; one that comes while the prober is behind is dropped.
func (p *Prober) heard(h live.Heard) {
	select {
	case p.events <- h:
	default:
	}
}

// note keeps a change of state, under mu, and reports whether Dead changed.
func (p *Prober) note(e live.Changed) bool {
	_, was := p.dead[e.Key]
	switch e.State {
	case live.Dead:
		p.dead[e.Key] = e.Since
		p.cfg.Logger.Warn("node does not answer", "peer", e.Key)
	case live.Alive:
		delete(p.dead, e.Key)
		if was {
			p.cfg.Logger.Info("node answers again", "peer", e.Key)
		}
	}
	return was != (e.State == live.Dead)
}

// spawn runs a probe, unless too many are in progress already: one that was not
// sent counts as one that was not answered, and many such as self-doubt.
func (p *Prober) spawn(probes *sync.WaitGroup, f func()) {
	select {
	case p.probes <- struct{}{}:
	default:
		return
	}
	probes.Add(1)
	go func() {
		defer probes.Done()
		defer func() { <-p.probes }()
		f()
	}()
}

func (p *Prober) report(ctx context.Context, ev live.Event) {
	select {
	case p.events <- ev:
	case <-ctx.Done():
	}
}

func (p *Prober) ping(ctx context.Context, e live.Ping) {
	if p.direct(ctx, e.To) == nil {
		p.report(ctx, live.Contact{Key: e.To})
	}
}

func (p *Prober) pingVia(ctx context.Context, via stmt.Key, e live.PingReq) {
	ctx, cancel := context.WithTimeout(ctx, viaTimeout)
	defer cancel()
	c, err := p.cfg.Streams.Open(ctx, PeerOf(via), ProtoProbeVia)
	if err != nil {
		return
	}
	defer c.Close()
	var answer [1]byte
	if exchange(ctx, c, e.Target[:], answer[:]) != nil {
		return
	}
	p.report(ctx, live.Contact{Key: via})
	if answer[0] == 1 {
		p.report(ctx, live.Contact{Key: e.Target})
	}
}

// direct probes one node, on the stream of the last probe if there is one: to
// open a stream costs many times a probe.
func (p *Prober) direct(ctx context.Context, k stmt.Key) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var nonce, echo [8]byte
	rand.Read(nonce[:]) // never fails (crypto/rand)
	if c := p.takeStream(k); c != nil {
		if exchange(ctx, c, nonce[:], echo[:]) == nil && echo == nonce {
			p.keepStream(k, c)
			return nil
		}
		c.Close() // the peer may have restarted: ask on a new one
	}
	c, err := p.cfg.Streams.Open(ctx, PeerOf(k), ProtoProbe)
	if err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	if err := exchange(ctx, c, nonce[:], echo[:]); err != nil {
		return errors.Join(err, c.Close())
	}
	if echo != nonce {
		return errors.Join(errors.New("probe: wrong echo"), c.Close())
	}
	p.keepStream(k, c)
	return nil
}

func (p *Prober) takeStream(k stmt.Key) net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.streams[k]
	delete(p.streams, k)
	return c
}

func (p *Prober) keepStream(k stmt.Key, c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, have := p.streams[k]; have || p.closed {
		c.Close()
		return
	}
	p.streams[k] = c
}

// closeStreams ends the idle streams, for good.
func (p *Prober) closeStreams() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, c := range p.streams {
		c.Close()
	}
}

// exchange writes a request and reads an answer of fixed length.
func exchange(ctx context.Context, c net.Conn, request, answer []byte) error {
	if d, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(d); err != nil {
			return fmt.Errorf("probe: %w", err)
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // wakes the read
	defer stop()
	if _, err := c.Write(request); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	if _, err := io.ReadFull(c, answer); err != nil {
		return fmt.Errorf("probe: %w", err)
	}
	return nil
}

// member is the node behind a peer, when the network admits it.
func (p *Prober) member(from peer.ID) (stmt.Key, bool) {
	k, err := KeyOf(from)
	return k, err == nil && p.cfg.View().IsMember(k, stmt.RoleNode)
}

// echo answers probes until the stream ends. Who asks is alive.
func (p *Prober) echo(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var b [8]byte
	for {
		k, ok := p.member(from)
		if !ok || c.SetDeadline(time.Now().Add(idleProbe)) != nil {
			return
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		if _, err := c.Write(b[:]); err != nil {
			return
		}
		p.report(ctx, live.Contact{Key: k})
	}
}

// echoVia probes for another node, which may ask about members only.
func (p *Prober) echoVia(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	select {
	case p.serve <- struct{}{}:
		defer func() { <-p.serve }()
	default:
		return // busy: the asker has others
	}
	if _, ok := p.member(from); !ok || c.SetDeadline(time.Now().Add(viaTimeout)) != nil {
		return
	}
	var k stmt.Key
	if _, err := io.ReadFull(c, k[:]); err != nil || !p.cfg.View().IsMember(k, stmt.RoleNode) {
		return
	}
	var answer [1]byte
	if k == p.cfg.Self || p.direct(ctx, k) == nil {
		answer[0] = 1
	}
	_, _ = c.Write(answer[:]) // an asker that went away asks again
}
