package forward

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/blake2s"
)

// Bounds of a [Table].
const (
	// indexLife is for how long an index is remembered at least after it was
	// chosen or last used: no session's keys live longer (REJECT_AFTER_TIME).
	indexLife = 180 * time.Second
	// maxIndices is how many a station may have; the oldest go.
	maxIndices = 8192
	// trialRate and trialBurst bound how many initiations by strangers are looked
	// at, in a second and at once: each costs a hash a station.
	trialRate  = 1000
	trialBurst = 1000
	// maxKnown is how many remotes count as no strangers.
	maxKnown = 8192
)

// Table knows to whom behind the port a datagram is addressed. Its methods may
// be called by several goroutines.
type Table struct {
	now func() time.Duration // since any fixed moment

	mu       sync.RWMutex
	stations map[string]*station
	order    []string // of stations, by name: trials are the same for all
	indices  map[uint32][]*session
	known    recent // remotes whose initiations were for somebody
	trials   bucket
}

// station is one WireGuard instance.
type station struct {
	key      [blake2s.Size]byte // its macKey
	public   [32]byte
	sessions []*session // oldest first
}

// session is an index in use.
type session struct {
	station string
	index   uint32
	remote  netip.AddrPort
	born    time.Duration
}

// New makes an empty table. now never goes back.
func New(now func() time.Duration) *Table {
	return &Table{now: now, stations: map[string]*station{}, indices: map[uint32][]*session{},
		known: newRecent(maxKnown), trials: bucket{rate: trialRate, burst: trialBurst, left: trialBurst}}
}

// Set says who is behind the port, all of them, by name and public key. Sessions
// of those who stay with their key stay.
func (t *Table) Set(publicKeys map[string][32]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range t.order {
		s := t.stations[name]
		if key, ok := publicKeys[name]; !ok || key != s.public {
			for _, x := range s.sessions {
				t.forget(x)
			}
			delete(t.stations, name)
		}
	}
	t.order = slices.Sorted(maps.Keys(publicKeys))
	for _, name := range t.order {
		if key := publicKeys[name]; t.stations[name] == nil {
			t.stations[name] = &station{key: macKey(key), public: key}
		}
	}
}

// In returns to whom a datagram from a remote goes; false: to nobody.
func (t *Table) In(b []byte, from netip.AddrPort) (string, bool) {
	if !Is(b) {
		return "", false
	}
	if b[0] == initiation {
		return t.addressee(b, from)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.holder(b, from)
}

// holder finds who has chosen the index in b: for this remote, else, as remotes
// change their address, for any.
func (t *Table) holder(b []byte, from netip.AddrPort) (string, bool) {
	all := t.indices[receiver(b)]
	if b[0] == response {
		for _, x := range all {
			if s := t.stations[x.station]; s != nil && addressed(b, &s.key) {
				return x.station, true
			}
		}
		return "", false
	}
	for _, x := range all {
		if x.remote == from {
			return x.station, true
		}
	}
	if len(all) == 1 {
		return all[0].station, true
	}
	return "", false
}

// addressee finds whose key an initiation is made for.
func (t *Table) addressee(b []byte, from netip.AddrPort) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if name, ok := t.known.get(from); ok {
		if s := t.stations[name]; s != nil && addressed(b, &s.key) {
			return name, true
		}
	}
	if !t.trials.take(now) {
		return "", false
	}
	for _, name := range t.order {
		if addressed(b, &t.stations[name].key) {
			t.known.put(from, name)
			return name, true
		}
	}
	return "", false
}

// Out notes what a station sends to a remote. It returns whether the datagram may
// go: what is no WireGuard may not, as a guest could use the port for anything.
func (t *Table) Out(b []byte, name string, to netip.AddrPort) bool {
	if !Is(b) {
		return false
	}
	if b[0] != initiation && b[0] != response {
		return true
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stations[name]
	if s == nil {
		return false
	}
	now, index := t.now(), sender(b)
	t.expire(s, now)
	for _, x := range t.indices[index] {
		if x.remote == to && x.station != name {
			return true // somebody else's; this session will find nobody
		}
		if x.remote == to {
			return true // a repetition
		}
	}
	x := &session{station: name, index: index, remote: to, born: now}
	t.indices[index] = append(t.indices[index], x)
	s.sessions = append(s.sessions, x)
	return true
}

// expire drops a station's sessions that are too old, and the oldest of too many.
func (t *Table) expire(s *station, now time.Duration) {
	n := 0
	for n < len(s.sessions) && (len(s.sessions)-n >= maxIndices || now-s.sessions[n].born > 2*indexLife) {
		t.forget(s.sessions[n])
		n++
	}
	s.sessions = slices.Delete(s.sessions, 0, n)
}

func (t *Table) forget(x *session) {
	left := slices.DeleteFunc(t.indices[x.index], func(y *session) bool { return x == y })
	if len(left) == 0 {
		delete(t.indices, x.index)
		return
	}
	t.indices[x.index] = left
}
