package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

// memberState is what admission asks of the state; *crdt.Replica has these
// methods.
type memberState interface {
	View() *crdt.View
	Admit(ctx context.Context, raw []byte, vouched stmt.Key) (stmt.Key, stmt.Role, error)
}

// admission decides which connections this node takes part in: those of member
// nodes, and those of clients that present a session of an owner whom the
// network admits. It remembers which owner a client speaks for.
type admission struct {
	network stmt.NetworkID
	self    stmt.Key
	hello   []byte
	now     func() time.Time
	vouched map[stmt.Key]bool // whose membership may rest on an invite that is over

	state    memberState
	mu       sync.Mutex
	sessions map[peer.ID]session
	refused  map[string]uint64 // connections, by reason
}

type session struct {
	by      stmt.Key // the owner's own key, or a device's
	owner   stmt.Key
	expires time.Time
}

func newAdmission(id *identity, state memberState, now func() time.Time) (*admission, error) {
	hello, err := stmt.EncodeHello(stmt.Hello{Member: id.Member})
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	return &admission{
		network: id.network(), self: id.self(), hello: hello, state: state, now: now, sessions: map[peer.ID]session{}, refused: map[string]uint64{},
		vouched: id.vouched(),
	}, nil
}

// Hello presents this node's own membership.
func (a *admission) Hello(peer.ID) ([]byte, error) { return a.hello, nil }

// Admit judges a peer: whoever presents a session is a client, also if its key
// is a node's. The text of its error is told to the peer.
func (a *admission) Admit(ctx context.Context, from peer.ID, hello []byte) (client bool, err error) {
	if client, err = a.judge(ctx, from, hello); err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.refused[admissionReason(err)]++
	}
	return client, err
}

// refusals counts the connections that were not admitted, by a few reasons.
func (a *admission) refusals() map[string]uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.refused)
}

// admissionReason is one word.
func admissionReason(err error) string {
	for _, c := range []struct {
		err  error
		word string
	}{
		{stmt.ErrTooLarge, "size"}, {stmt.ErrEncoding, "shape"}, {stmt.ErrShape, "shape"}, {stmt.ErrNetwork, "network"},
		{stmt.ErrSignature, "signature"}, {stmt.ErrExpired, "expired"}, {stmt.ErrAuthority, "authority"}, {crdt.ErrQuota, "quota"},
	} {
		if errors.Is(err, c.err) {
			return c.word
		}
	}
	return "stranger"
}

func (a *admission) judge(ctx context.Context, from peer.ID, hello []byte) (client bool, err error) {
	state := a.state
	h, err := stmt.DecodeHello(hello)
	if err != nil {
		return false, fmt.Errorf("hello: %w", err)
	}
	key, err := stmt.KeyOfPeerID(string(from))
	if err != nil {
		return false, err
	}
	if len(h.Member) > 0 {
		var vouched stmt.Key
		if a.vouched[key] {
			vouched = key
		}
		// A stale or unneeded statement is no reason to refuse a member.
		if _, _, err := state.Admit(ctx, h.Member, vouched); err != nil && !errors.Is(err, crdt.ErrStale) {
			return false, fmt.Errorf("membership: %w", err)
		}
	}
	if len(h.Session) > 0 {
		return true, a.admitSession(state.View(), from, key, h.Session)
	}
	if !state.View().IsMember(key, stmt.RoleNode) {
		return false, fmt.Errorf("%s is not a member of this network; join it by a ticket", key)
	}
	return false, nil
}

func (a *admission) admitSession(v *crdt.View, from peer.ID, key stmt.Key, raw []byte) error {
	by, owner, body, err := stmt.CheckSession(raw, a.network, key, a.self, a.now())
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	if !v.OwnerAllowed(owner) {
		return fmt.Errorf("owner %s is not a member of this network; a ticket admits it", owner)
	}
	if !v.SpeaksFor(by, owner) {
		return fmt.Errorf("%s is no device of owner %s, or was removed; the owner lists it: form key device add", by, owner)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sessions[from] = session{by, owner, time.Unix(body.Expires, 0)}
	return nil
}

// Gone forgets a client's session.
func (a *admission) Gone(p peer.ID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.sessions, p)
}

// owner is whom a connected peer speaks for; zero for nobody, also when the
// session has ended, the owner is no member any more, or the device was removed.
func (a *admission) owner(p peer.ID) stmt.Key {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.sessions[p]
	if !ok || a.now().After(s.expires) || !a.state.View().SpeaksFor(s.by, s.owner) {
		return stmt.Key{}
	}
	return s.owner
}

// stays says whether a connected peer may remain: as a node while it is a
// member, as a client while it may speak for its owner.
func (a *admission) stays(v *crdt.View, p peer.ID) bool {
	a.mu.Lock()
	s, client := a.sessions[p]
	a.mu.Unlock()
	if client {
		return v.SpeaksFor(s.by, s.owner)
	}
	key, err := stmt.KeyOfPeerID(string(p))
	return err == nil && v.IsMember(key, stmt.RoleNode)
}

// connections are those of this node; *p2p.Node has these methods.
type connections interface {
	PeerInfo() []p2p.PeerInfo
	Drop(p peer.ID, reason string) error
}

// lookAgain is how soon a peer is found that was admitted by a view which a
// revocation replaced before the peer counted as connected.
const lookAgain = 30 * time.Second

// enforce cuts the connections of peers that are no members any more, until ctx
// ends. views are those of the state. A connection that does not close is tried
// again at the next look.
func (a *admission) enforce(ctx context.Context, views <-chan *crdt.View, c connections, log *slog.Logger) {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	var v *crdt.View
	for {
		select {
		case <-ctx.Done():
			return
		case next, ok := <-views:
			if !ok {
				return
			}
			v = next
		case <-tick.C:
		}
		if v == nil {
			continue
		}
		for _, p := range c.PeerInfo() {
			// Who connected after v was made may be a member by a later view.
			if a.stays(v, p.ID) || a.stays(a.state.View(), p.ID) {
				continue
			}
			if err := c.Drop(p.ID, "its membership, or its owner's word for it, was revoked"); err != nil {
				log.Warn("a revoked peer is not cut off yet", "peer", p.ID, "err", err)
			}
		}
	}
}
