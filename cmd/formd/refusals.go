package main

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
)

// Why a request or a stream of a peer is refused: few words, as metrics have them.
const (
	refusedAuthority = "authority" // not this peer's to ask
	refusedSize      = "size"      // over a limit
	refusedShape     = "shape"     // not what the endpoint takes, or no request
	refusedTime      = "time"      // too slow
	refusedRate      = "rate"      // too many at once
)

// refusalReason is the word for an error of the API; empty for one that is no
// refusal, as that something is not found.
func refusalReason(err error) string {
	var p *api.Problem
	var t net.Error
	switch {
	case errors.As(err, &t) && t.Timeout() && !errors.Is(err, context.DeadlineExceeded): // a stream's, not ours
		return refusedTime
	case !errors.As(err, &p):
		return ""
	case p.Status == http.StatusRequestTimeout:
		return refusedTime
	case p.Status == http.StatusForbidden:
		return refusedAuthority
	case p.Status == http.StatusRequestEntityTooLarge:
		return refusedSize
	case p.Status == http.StatusBadRequest:
		return refusedShape
	}
	return ""
}

// refusals counts what peers asked and was refused, and names the peers now and
// then. Safe for concurrent use.
type refusals struct {
	log *slog.Logger
	now func() time.Time

	mu   sync.Mutex
	by   map[string]uint64
	told map[refusalOf]time.Time
}

type refusalOf struct {
	peer   peer.ID
	reason string
}

// How often a peer is named for one reason, and how many are remembered as named.
const (
	nameAgain = time.Minute
	mostNamed = 4096
)

func newRefusals(log *slog.Logger, now func() time.Time) *refusals {
	return &refusals{log: log, now: now, by: map[string]uint64{}, told: map[refusalOf]time.Time{}}
}

// refuse counts a refusal.
func (r *refusals) refuse(from peer.ID, reason string, err error) {
	if r.count(refusalOf{from, reason}) {
		r.log.Info("refused what a peer asked", "peer", from, "reason", reason, "err", err)
	}
}

// count counts, and says whether to name the peer.
func (r *refusals) count(what refusalOf) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.by[what.reason]++
	now := r.now()
	if last, ok := r.told[what]; ok && now.Sub(last) < nameAgain {
		return false
	}
	if len(r.told) >= mostNamed {
		maps.DeleteFunc(r.told, func(_ refusalOf, at time.Time) bool { return now.Sub(at) >= nameAgain })
	}
	if len(r.told) >= mostNamed {
		return false // so many at once that naming one more helps nobody
	}
	r.told[what] = now
	return true
}

// counts are all refusals since the start, by reason.
func (r *refusals) counts() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.by)
}
