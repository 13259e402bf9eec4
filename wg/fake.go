package wg

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Fake is a [Device] in memory that treats changes as a real one does: an
// address that is given to a peer is taken from whoever had it. The zero Fake is
// ready for use, by several goroutines.
type Fake struct {
	mu      sync.Mutex
	peers   map[Key]*Status
	holder  map[netip.Addr]Key
	touched []string // names of the peers of each change
	err     error
}

// Configure implements [Device].
func (f *Fake) Configure(changes []wgtypes.PeerConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	for _, c := range changes {
		f.touched = append(f.touched, short(c.PublicKey))
		f.configure(c)
	}
	return nil
}

func (f *Fake) configure(c wgtypes.PeerConfig) {
	p := f.peers[c.PublicKey]
	if c.Remove {
		if p != nil {
			f.release(p)
			delete(f.peers, c.PublicKey)
		}
		return
	}
	if p == nil {
		if c.UpdateOnly {
			return
		}
		p = &Status{Peer: Peer{Key: c.PublicKey}}
		if f.peers == nil {
			f.peers, f.holder = map[Key]*Status{}, map[netip.Addr]Key{}
		}
		f.peers[c.PublicKey] = p
	}
	if c.Endpoint != nil {
		p.Endpoint = c.Endpoint.AddrPort()
	}
	if c.PersistentKeepaliveInterval != nil {
		p.Keepalive = *c.PersistentKeepaliveInterval
	}
	if c.ReplaceAllowedIPs {
		f.release(p)
	}
	for _, n := range c.AllowedIPs {
		f.move(n, p)
	}
}

func (f *Fake) release(p *Status) {
	for _, a := range p.Addresses {
		delete(f.holder, a)
	}
	p.Addresses = nil
}

func (f *Fake) move(n net.IPNet, to *Status) {
	a, _ := netip.AddrFromSlice(n.IP)
	if p := f.peers[f.holder[a]]; p != nil {
		p.Addresses = slices.DeleteFunc(p.Addresses, func(b netip.Addr) bool { return a == b })
	}
	f.holder[a] = to.Key
	to.Addresses = append(to.Addresses, a)
	slices.SortFunc(to.Addresses, netip.Addr.Compare)
}

// Peers implements [Device].
func (f *Fake) Peers() ([]Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	out := make([]Status, 0, len(f.peers))
	for _, p := range f.peers {
		s := *p
		s.Addresses = slices.Clone(p.Addresses)
		out = append(out, s)
	}
	return out, nil
}

// Fail makes every call fail with err, until it is nil.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// Shake makes the peer have had a handshake at that time, from that endpoint
// when it is valid.
func (f *Fake) Shake(key Key, at time.Time, from netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.peers[key]; p != nil {
		p.Handshake = at
		if from.IsValid() {
			p.Endpoint = from
		}
	}
}

// Touched returns, and forgets, the first characters of the key of each change
// so far.
func (f *Fake) Touched() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.touched
	f.touched = nil
	return t
}

// String is a line for each peer, in the order of keys.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, key := range slices.SortedFunc(maps.Keys(f.peers), compareKeys) {
		p := f.peers[key]
		fmt.Fprintf(&b, "%s %v", short(key), p.Addresses)
		if p.Endpoint.IsValid() {
			fmt.Fprintf(&b, " at %s", p.Endpoint)
		}
		if p.Keepalive > 0 {
			fmt.Fprintf(&b, " every %s", p.Keepalive)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func short(k Key) string { return k.String()[:6] }
