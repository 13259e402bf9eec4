package wg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Device is a WireGuard device, real or not. Methods may be called by several
// goroutines.
type Device interface {
	// Configure changes peers, in this order. It may fail half-way.
	Configure(changes []wgtypes.PeerConfig) error
	// Peers lists the device's peers, in any order.
	Peers() ([]Status, error)
}

// Config is what a [Mesh] needs; all but Now and Log must be set.
type Config struct {
	Device Device
	Space  Space
	Now    func() time.Time // wall clock, as the device's; nil: time.Now
	Log    *slog.Logger     // nil: slog.Default()
}

// Mesh makes a device's peers be those wanted. Its methods may be called by
// several goroutines.
type Mesh struct {
	cfg  Config
	wake chan struct{} // capacity 1

	mu       sync.Mutex
	want     []Peer // valid, one of a key
	problems []error

	// Of Run alone:
	have    map[Key]programmed // nil: not known
	audited time.Time
	said    map[string]bool // problems that the log knows
}

// When to try again after a failure, how often to see whether somebody else has
// changed the device, and how many changes it gets in one call: a call holds its
// lock.
const (
	retryEvery = 5 * time.Second
	auditEvery = 5 * time.Minute
	batch      = 200
)

// New makes a Mesh that does nothing before [Mesh.Run].
func New(cfg Config) (*Mesh, error) {
	if cfg.Device == nil || cfg.Space == (Space{}) {
		return nil, errors.New("wg: a mesh needs a device and an address space")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Mesh{cfg: cfg, wake: make(chan struct{}, 1)}, nil
}

// Set says who is wanted, all of them; an earlier peer wins an address over a
// later one, unless the later one holds it and is alive. It returns at once. A
// peer that is not valid is left out and told in the error; the others count.
func (m *Mesh) Set(peers []Peer) error {
	var problems []error
	want, seen := make([]Peer, 0, len(peers)), make(map[Key]bool, len(peers))
	for _, p := range peers {
		err := p.check(m.cfg.Space)
		if err == nil && seen[p.Key] {
			err = fmt.Errorf("peer %s is given twice", p.Key)
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		seen[p.Key] = true
		p.Addresses = slices.Clone(p.Addresses)
		want = append(want, p)
	}
	m.mu.Lock()
	m.want = want
	m.mu.Unlock()
	m.nudge()
	if err := errors.Join(problems...); err != nil {
		return fmt.Errorf("wg: %w", err)
	}
	return nil
}

func (m *Mesh) nudge() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Problems is what of the wanted could not be had when the device was last
// looked at: addresses that two peers want, or the device's own error.
func (m *Mesh) Problems() []error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.problems)
}

// Run programs the device until ctx ends. What the device has when Run begins
// is taken for what an earlier Run has made: it stays as far as it is wanted. So
// does everything when Run ends. An error of the device is no end: it is logged,
// told by [Mesh.Problems], and tried again. It always returns nil.
func (m *Mesh) Run(ctx context.Context) error {
	for {
		wait, err := m.settle()
		if err != nil {
			m.have, wait = nil, retryEvery // it may have failed half-way
			m.report([]error{fmt.Errorf("cannot program the device: %w", err)})
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// settle brings the device to what is wanted, and says when to look again.
func (m *Mesh) settle() (time.Duration, error) {
	m.mu.Lock()
	want := m.want
	m.mu.Unlock()
	now := m.cfg.Now()
	seen, err := m.look(want, now)
	if err != nil {
		return 0, err
	}
	s := diff(want, m.have, seen, now)
	for part := range slices.Chunk(s.changes, batch) {
		if err := m.cfg.Device.Configure(part); err != nil {
			return 0, err
		}
	}
	m.have = s.next
	m.report(s.problems)
	if s.again > 0 {
		return s.again, nil
	}
	return auditEvery, nil
}

// look asks the device for its peers where the answer matters.
func (m *Mesh) look(want []Peer, now time.Time) (map[Key]Status, error) {
	due := m.have == nil || now.Sub(m.audited) >= auditEvery
	if !due && !unsettled(want, m.have) {
		return nil, nil
	}
	peers, err := m.cfg.Device.Peers()
	if err != nil {
		return nil, err
	}
	seen := make(map[Key]Status, len(peers))
	for _, p := range peers {
		seen[p.Key] = p
	}
	if due {
		m.have, m.audited = adopt(m.have, peers), now
	}
	return seen, nil
}

// adopt is what is programmed as the device says it. It does not say what
// endpoint was asked for, and since when a peer is there.
func adopt(have map[Key]programmed, peers []Status) map[Key]programmed {
	found := make(map[Key]programmed, len(peers))
	for _, p := range peers {
		now := programmed{addresses: p.Addresses, endpoint: p.Endpoint, keepalive: p.Keepalive}
		if old, ok := have[p.Key]; ok {
			now.endpoint, now.since = old.endpoint, old.since
		}
		found[p.Key] = now
	}
	return found
}

// unsettled says whether it matters who is alive: an address changes hands, two
// want one, or somebody is said to be elsewhere.
func unsettled(want []Peer, have map[Key]programmed) bool {
	holder := map[netip.Addr]Key{}
	for key, p := range have {
		for _, a := range p.addresses {
			holder[a] = key
		}
	}
	claimed := map[netip.Addr]bool{}
	for _, p := range want {
		old, known := have[p.Key]
		if known && p.Endpoint != old.endpoint {
			return true
		}
		for _, a := range p.Addresses {
			if h, held := holder[a]; held && h != p.Key || claimed[a] {
				return true
			}
			claimed[a] = true
		}
	}
	return false
}

// report keeps the problems, and logs those that are new.
func (m *Mesh) report(problems []error) {
	said := make(map[string]bool, len(problems))
	for _, p := range problems {
		text := p.Error()
		if !m.said[text] {
			m.cfg.Log.Warn("mesh: " + text)
		}
		said[text] = true
	}
	m.said = said
	m.mu.Lock()
	m.problems = problems
	m.mu.Unlock()
}
