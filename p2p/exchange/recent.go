package exchange

import (
	"sort"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	recentTime    = time.Minute // a fetcher asks again every second or so while it works
	recentEntries = 256
	recentPeers   = 32
)

// recent remembers who asked for which entry lately, so that fetchers of one
// pack find each other without the DHT. Only entries this node knows are
// remembered: a peer cannot fill it with inventions.
type recent struct {
	mu sync.Mutex
	by map[cid.Cid]map[peer.ID]time.Time
}

// ask notes that from asks for entries and returns the others that did, at most
// maxOthers, latest first.
func (r *recent) ask(entries []cid.Cid, from peer.ID, now time.Time, known bool) []peer.ID {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[cid.Cid]map[peer.ID]time.Time{}
	}
	seen := map[peer.ID]time.Time{}
	for _, c := range entries {
		peers := r.by[c]
		for p, t := range peers {
			switch {
			case now.Sub(t) > recentTime:
				delete(peers, p)
			case p != from && t.After(seen[p]):
				seen[p] = t
			}
		}
		if known {
			r.note(c, from, now)
		}
	}
	out := make([]peer.ID, 0, len(seen))
	for p := range seen {
		out = append(out, p)
	}
	sort.Slice(out, func(i, j int) bool {
		if !seen[out[i]].Equal(seen[out[j]]) {
			return seen[out[i]].After(seen[out[j]])
		}
		return out[i] < out[j]
	})
	return out[:min(len(out), maxOthers)]
}

func (r *recent) note(c cid.Cid, from peer.ID, now time.Time) {
	peers := r.by[c]
	if peers == nil {
		r.prune(now)
		if len(r.by) >= recentEntries {
			return
		}
		peers = map[peer.ID]time.Time{}
		r.by[c] = peers
	}
	if _, there := peers[from]; there || len(peers) < recentPeers {
		peers[from] = now
	}
}

// prune drops entries nobody asked for lately.
func (r *recent) prune(now time.Time) {
	for c, peers := range r.by {
		live := false
		for _, t := range peers {
			live = live || now.Sub(t) <= recentTime
		}
		if !live {
			delete(r.by, c)
		}
	}
}
