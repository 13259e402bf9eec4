package crdt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// Gossip is what a Replica needs of a pubsub. Topics are bare names; the
// implementation adds the network. p2p.Node is one.
type Gossip interface {
	Publish(ctx context.Context, topic string, msg []byte) error
	// Subscribe shows every message of a peer to validate, which receives it;
	// false keeps it from being passed on. It returns at once and ends with ctx.
	Subscribe(ctx context.Context, topic string, validate func(ctx context.Context, from peer.ID, msg []byte) bool) error
}

// Streams is what a Replica needs of a host. Protocol names are bare.
type Streams interface {
	Peers() []peer.ID
	Open(ctx context.Context, p peer.ID, proto string) (net.Conn, error)
	Handle(proto string, h func(ctx context.Context, from peer.ID, c net.Conn))
}

// Bounds of gossip.
const (
	// MaxGossip is the largest gossip message in bytes (CONTRACT, Limits).
	MaxGossip       = 64 << 10
	gossipBatch     = 48 << 10
	maxGossipStmts  = 64
	topicShards     = 1
	peerRate        = 1000 // messages a second one neighbour may pass on
	peerBurst       = 4000
	stmtRate        = 2000 // and statements in them
	stmtBurst       = 10000
	pairRate        = 100 // and of these by one author
	pairBurst       = 1000
	authorRate      = 50 // statements a second of one author that are passed on
	authorBurst     = 500
	maxRateCounters = 4096
)

// topicOf returns the topic of statements by author: sharded by key hash.
func topicOf(author stmt.Key) string {
	return fmt.Sprintf("state/%d", subjectOf("topic", author[:])%topicShards)
}

func topics() []string {
	out := make([]string, topicShards)
	for i := range out {
		out[i] = fmt.Sprintf("state/%d", i)
	}
	return out
}

// gossipMsg is a gossip message: raw statements of one topic.
type gossipMsg struct {
	Raws [][]byte `cbor:"r"`
}

func encodeGossip(raws [][]byte) ([]byte, error) { return stmt.Marshal(gossipMsg{raws}) }

// decodeGossip returns the statements of a message, which it does not share.
func decodeGossip(msg []byte) ([][]byte, error) {
	if len(msg) > MaxGossip {
		return nil, fmt.Errorf("%w: gossip message of %d bytes", stmt.ErrTooLarge, len(msg))
	}
	if len(msg) == 0 || msg[0]>>5 != 5 {
		return nil, fmt.Errorf("%w: gossip message is no map", stmt.ErrShape)
	}
	var m gossipMsg
	if err := stmt.Unmarshal(msg, &m); err != nil {
		return nil, err
	}
	if len(m.Raws) == 0 || len(m.Raws) > maxGossipStmts {
		return nil, fmt.Errorf("%w: gossip message of %d statements", stmt.ErrShape, len(m.Raws))
	}
	return m.Raws, nil
}

// batches splits statements into gossip messages by topic, order kept within
// each.
func batches(sts []*stmt.Statement) map[string][][][]byte {
	out := map[string][][][]byte{}
	size := map[string]int{}
	for _, st := range sts {
		t := topicOf(st.Author)
		n := len(out[t])
		if n == 0 || size[t]+len(st.Raw) > gossipBatch || len(out[t][n-1]) == maxGossipStmts {
			out[t] = append(out[t], nil)
			size[t] = 0
			n++
		}
		out[t][n-1] = append(out[t][n-1], st.Raw)
		size[t] += len(st.Raw) + 4
	}
	return out
}

// rates are token buckets by name, bounded in number: when there are too many, one
// of those that say least gives way, which is the fullest of a few. So whoever makes
// up many names does not free the one that has taken much.
type rates[K comparable] struct {
	mu     sync.Mutex
	rate   float64 // tokens a second
	burst  float64
	tokens map[K]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

func newRates[K comparable](rate, burst float64) *rates[K] {
	return &rates[K]{rate: rate, burst: burst, tokens: map[K]bucket{}}
}

// take takes n tokens of k and says whether there were so many.
func (r *rates[K]) take(k K, n int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.tokens[k]
	if !ok {
		if len(r.tokens) >= maxRateCounters {
			delete(r.tokens, leastOf(r.tokens, func(k K) float64 { return -r.left(r.tokens[k], now) }))
		}
		b = bucket{r.burst, now}
	}
	b = bucket{r.left(b, now), now}
	ok = b.left >= float64(n)
	if ok {
		b.left -= float64(n)
	}
	r.tokens[k] = b
	return ok
}

// left is what a bucket holds now.
func (r *rates[K]) left(b bucket, now time.Time) float64 {
	return min(r.burst, b.left+max(0, now.Sub(b.at).Seconds())*r.rate)
}

// fewOf is how many are looked at to find one that gives way.
const fewOf = 16

// leastOf is the one with the least weight of a few keys of m, which is not empty.
func leastOf[K comparable, V any](m map[K]V, weight func(K) float64) (least K) {
	n, lightest := 0, 0.0
	for k := range m { // any order: any few will do
		if w := weight(k); n == 0 || w < lightest {
			least, lightest = k, w
		}
		if n++; n == fewOf {
			break
		}
	}
	return least
}

// validate receives a gossip message of a member and says whether to pass it on: only when
// every statement in it is in order and one at least was news.
func (r *Replica) validate(_ context.Context, from peer.ID, msg []byte) bool {
	if from == r.self {
		return true // published here; the state has it
	}
	now := r.cfg.Now()
	if !r.limits.messages.take(from, 1, now) {
		r.refuse(from, RefusedRate, errRate)
		return false
	}
	if !r.isPeer(from) {
		r.refuse(from, RefusedSender, ErrNotMember)
		return false
	}
	raws, err := decodeGossip(msg)
	if err != nil {
		r.refuse(from, reasonOf(err), err)
		return false
	}
	within := r.withinRates(from, raws, now)
	if len(within) < len(raws) {
		r.refuse(from, RefusedRate, fmt.Errorf("%w: %d statements", errRate, len(raws)-len(within)))
	}
	news, err := r.merge(from, within, now)
	if err != nil {
		return false
	}
	for _, st := range news {
		if !r.limits.spread.take(st.Author, 1, now) {
			return false // held here, but not spread faster than this
		}
	}
	return len(news) > 0 && len(within) == len(raws)
}

// withinRates leaves out the statements that are too many: before signatures are
// looked at, so the author may be a lie. It counts for the neighbour who says it
// alone, and takes nothing from what others may say of the same author.
func (r *Replica) withinRates(from peer.ID, raws [][]byte, now time.Time) [][]byte {
	if !r.limits.statements.take(from, len(raws), now) {
		return nil
	}
	out := make([][]byte, 0, len(raws))
	for _, raw := range raws {
		st, err := stmt.Peek(raw, r.cfg.Network)
		// merge judges what cannot be read.
		if err != nil || r.limits.pairs.take(pair{from, st.Author}, 1, now) {
			out = append(out, raw)
		}
	}
	return out
}

// benign says whether an error in a peer's statement may happen between honest
// replicas: they hold different things, or one is newer.
func benign(err error) bool {
	for _, e := range []error{ErrStale, ErrNotMember, ErrPending, ErrQuota, ErrFrozen, ErrInvalid, stmt.ErrExpired, stmt.ErrAuthority} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
