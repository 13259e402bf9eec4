package reconcile

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/live"
	"github.com/formthefog/formation/crdt/stmt"
)

// TopicHint is the bare name of the gossip topic of hints; each message is one.
const TopicHint = "hint/0"

// Bounds of hints. Rates are per second.
const (
	hintPeerRate, hintPeerBurst       = 100, 1000 // that one neighbour passes on, before signatures
	hintAuthorRate, hintAuthorBurst   = 5, 50     // of one author
	hintSubjectRate, hintSubjectBurst = 5, 20     // about one node
	maxHintCounters                   = 4096
)

// Gossip is what hints need of a pubsub; *p2p.Node has these methods.
type Gossip = crdt.Gossip

// hints sends and receives what nodes tell each other of their peers.
type hints struct {
	key    ed25519.PrivateKey
	net    stmt.NetworkID
	gossip Gossip
	view   func() *crdt.View
	now    func() time.Duration
	heard  func(live.Heard)

	mu       sync.Mutex
	seq      uint64
	said     map[stmt.Key]said
	peers    buckets[peer.ID]
	authors  buckets[stmt.Key]
	subjects buckets[stmt.Key]
}

func newHints(key ed25519.PrivateKey, g Gossip, view func() *crdt.View, now func() time.Duration, heard func(live.Heard)) *hints {
	return &hints{
		key: key, net: view().Network(), gossip: g, view: view, now: now, heard: heard, said: map[stmt.Key]said{},
		peers:    newBuckets[peer.ID](hintPeerRate, hintPeerBurst),
		authors:  newBuckets[stmt.Key](hintAuthorRate, hintAuthorBurst),
		subjects: newBuckets[stmt.Key](hintSubjectRate, hintSubjectBurst),
	}
}

// tell signs and spreads a hint. A node without a register does not speak: nobody
// would believe it a node.
func (h *hints) tell(ctx context.Context, t live.Hint) error {
	self, ok := h.view().Node(stmt.KeyOf(h.key))
	if !ok {
		return nil
	}
	h.mu.Lock()
	h.seq++
	seq := h.seq
	h.mu.Unlock()
	raw, err := stmt.SignHint(h.key, h.net, stmt.HintBody{Peer: t.Peer, Alive: t.Alive, Epoch: t.Epoch, Count: t.Count}, self.Epoch, seq)
	if err != nil {
		return fmt.Errorf("hint: %w", err)
	}
	if err := h.gossip.Publish(ctx, TopicHint, raw); err != nil {
		return fmt.Errorf("hint: %w", err)
	}
	return nil
}

// validate receives a hint and says whether to pass it on: when it is by a node, of
// a node, not said before, and not one too many.
func (h *hints) validate(_ context.Context, from peer.ID, raw []byte) bool {
	self := stmt.KeyOf(h.key)
	if from == PeerOf(self) {
		return true
	}
	h.mu.Lock()
	within := h.peers.take(from, h.now())
	h.mu.Unlock()
	if !within {
		return false
	}
	v := h.view()
	if k, err := KeyOf(from); err != nil || !v.IsMember(k, stmt.RoleNode) {
		return false
	}
	st, body, err := stmt.PeekHint(raw, h.net)
	if err != nil || st.Author == self || !v.IsMember(st.Author, stmt.RoleNode) || !v.IsMember(body.Peer, stmt.RoleNode) {
		return false
	}
	author, ok := v.Node(st.Author)
	if !ok || st.Epoch < author.Epoch || h.knows(st) || st.CheckSignature() != nil || !h.note(st, body.Peer) {
		return false
	}
	h.heard(live.Heard{From: st.Author, Hint: live.Hint{
		Peer: body.Peer, Alive: body.Alive, Incarnation: live.Incarnation{Epoch: body.Epoch, Count: body.Count},
	}})
	return true
}

// knows says whether a hint was said before, or is too old to tell.
func (h *hints) knows(st *stmt.Statement) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.said[st.Author]
	return !s.news(st.Epoch, st.Seq)
}

// note counts a verified hint, and says whether it is news and within the bounds.
func (h *hints) note(st *stmt.Statement, subject stmt.Key) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.said[st.Author]
	if !s.news(st.Epoch, st.Seq) {
		return false // meanwhile, by another neighbour
	}
	if len(h.said) >= maxHintCounters {
		clear(h.said) // the rates hold still
	}
	s.note(st.Epoch, st.Seq)
	h.said[st.Author] = s
	now := h.now()
	return h.authors.take(st.Author, now) && h.subjects.take(subject, now)
}

// said are the hints of one author that were received: of its latest epoch the
// highest number, and which of the 64 up to it. Gossip brings them out of order.
type said struct {
	epoch, seq, seen uint64
}

func (s *said) news(epoch, seq uint64) bool {
	switch {
	case epoch != s.epoch:
		return epoch > s.epoch
	case seq > s.seq:
		return true
	}
	back := s.seq - seq
	return back < 64 && s.seen&(1<<back) == 0
}

func (s *said) note(epoch, seq uint64) {
	if epoch > s.epoch {
		*s = said{epoch: epoch, seq: seq, seen: 1}
		return
	}
	if seq > s.seq {
		s.seen <<= min(seq-s.seq, 64)
		s.seq = seq
	}
	s.seen |= 1 << (s.seq - seq)
}

// buckets are token buckets by name, bounded in number: when there are too many,
// all start anew.
type buckets[K comparable] struct {
	rate, burst float64
	left        map[K]bucket
}

type bucket struct {
	tokens float64
	at     time.Duration
}

func newBuckets[K comparable](rate, burst float64) buckets[K] {
	return buckets[K]{rate: rate, burst: burst, left: map[K]bucket{}}
}

// take takes a token of k and says whether there was one.
func (b *buckets[K]) take(k K, now time.Duration) bool {
	l, ok := b.left[k]
	if !ok {
		if len(b.left) >= maxHintCounters {
			clear(b.left)
		}
		l = bucket{b.burst, now}
	}
	l.tokens = min(b.burst, l.tokens+max(0, now-l.at).Seconds()*b.rate)
	l.at = now
	if ok = l.tokens >= 1; ok {
		l.tokens--
	}
	b.left[k] = l
	return ok
}
