package agent

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/formthefog/formation/wg"
)

// ErrSilent: the replica did not answer on the mesh lately, and is being tried.
var ErrSilent = errors.New("it did not answer on the mesh lately")

const (
	// silentFor is for how long it is remembered that a peer did not answer.
	silentFor = time.Minute
	// enoughEchoes is how many have to be without an answer.
	enoughEchoes = 4
	// maxSilent is of how many peers it is remembered, and maxTries how many of them
	// are tried at once, each for tryFor.
	maxSilent = 256
	maxTries  = 16
	tryFor    = 30 * time.Second
)

// silence is which peers did not answer, so that nobody waits for them again. It is
// pure, and for one goroutine. The zero value is ready.
type silence struct {
	of map[wg.Key]silent
}

type silent struct {
	since     time.Duration
	handshake time.Time // the last one at that time
}

// note notes that a peer does not answer.
func (s *silence) note(key wg.Key, now time.Duration, handshake time.Time) {
	if s.of == nil {
		s.of = map[wg.Key]silent{}
	}
	if _, known := s.of[key]; !known && len(s.of) >= maxSilent {
		oldest, first := wg.Key{}, true
		for k, o := range s.of { // any order: of equal ones any may go
			if first || o.since < s.of[oldest].since {
				oldest, first = k, false
			}
		}
		delete(s.of, oldest)
	}
	s.of[key] = silent{now, handshake}
}

// is says whether a peer is not to be waited for, and forgets it when that is long
// ago or there was a handshake since.
func (s *silence) is(key wg.Key, now time.Duration, handshake time.Time) bool {
	o, ok := s.of[key]
	if ok && now-o.since < silentFor && handshake.Equal(o.handshake) {
		return true
	}
	delete(s.of, key)
	return false
}

func (s *silence) forget(key wg.Key) { delete(s.of, key) }

// handshake is when the device last had one with a peer; zero: never, as far as it
// says.
func (m *Mesh) handshake(key wg.Key) time.Time {
	peers, err := m.device.Peers()
	if err != nil {
		m.cfg.Log.Debug("mesh: handshakes", "err", err)
	}
	for _, p := range peers {
		if p.Key == key {
			return p.Handshake
		}
	}
	return time.Time{}
}

// isSilent says whether a peer did not answer lately; one that did not is tried.
func (m *Mesh) isSilent(p Peer) bool {
	key := wg.Key(p.Key)
	m.mu.Lock()
	_, noted := m.silence.of[key]
	m.mu.Unlock()
	if !noted {
		return false
	}
	handshake := m.handshake(key)
	m.mu.Lock()
	is := m.silence.is(key, m.cfg.Now(), handshake)
	m.mu.Unlock()
	if is {
		m.again(p)
	}
	return is
}

// silentPeers are those, of which the device says this, that did not answer lately.
func (m *Mesh) silentPeers(have []wg.Status) map[wg.Key]bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[wg.Key]bool{}
	for _, p := range have {
		out[p.Key] = m.silence.is(p.Key, m.cfg.Now(), p.Handshake)
	}
	return out
}

// again has a peer tried.
func (m *Mesh) again(p Peer) {
	select {
	case m.retry <- p:
	default: // enough are
	}
}

// answered notes how an attempt at a peer has ended, of so many echoes.
func (m *Mesh) answered(key wg.Key, echoes int, err error) {
	var handshake time.Time
	if err != nil {
		handshake = m.handshake(key)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.silence.forget(key)
	case echoes >= enoughEchoes:
		m.silence.note(key, m.cfg.Now(), handshake)
	}
}

// tryAgain tries silent peers until ctx ends: one that answers is not silent from
// then on.
func (m *Mesh) tryAgain(ctx context.Context) {
	var tries sync.WaitGroup
	defer tries.Wait()
	tried := map[wg.Key]bool{}
	done := make(chan wg.Key, maxTries)
	for {
		retry := m.retry
		if len(tried) >= maxTries {
			retry = nil
		}
		select {
		case <-ctx.Done():
			return
		case key := <-done:
			delete(tried, key)
		case p := <-retry:
			key := wg.Key(p.Key)
			if tried[key] {
				continue
			}
			tried[key] = true
			tries.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, tryFor)
				defer cancel()
				echoes, err := m.ping(ctx, p.Address6)
				m.answered(key, echoes, err)
				done <- key // there is room for all
			})
		}
	}
}
