package swarm

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// admission presents the owner to every peer that form dials.
type admission struct {
	key    ed25519.PrivateKey
	owner  stmt.Key // for whom a device's key speaks; zero: the key is the owner's
	client stmt.Key
	net    stmt.NetworkID
	ticket *stmt.Ticket // nil: the owner is a member already, or anyone may be
}

// Hello signs a session for this one pair of peers and, when a ticket holds an
// invite that is still good, the owner's membership. An ended invite is no
// error: the swarm remembers whom it admitted.
func (a *admission) Hello(to peer.ID) ([]byte, error) {
	server, err := stmt.KeyOfPeerID(string(to))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	session, err := stmt.SignSession(a.key, a.net, stmt.SessionBody{
		Client: a.client, Server: server, Expires: now.Add(sessionLife).Unix(), Owner: a.owner,
	})
	if err != nil {
		return nil, fmt.Errorf("sign session: %w", err)
	}
	member, err := a.member(now)
	if err != nil {
		return nil, err
	}
	return stmt.EncodeHello(stmt.Hello{Member: member, Session: session})
}

func (a *admission) member(now time.Time) ([]byte, error) {
	key := stmt.KeyOf(a.key)
	if a.ticket == nil || len(a.ticket.InviteSeed) == 0 || !a.owner.IsZero() && a.owner != key {
		return nil, nil // a device is no member: its owner is
	}
	raw, err := a.ticket.Join(key, stmt.RoleOwner, now)
	if errors.Is(err, stmt.ErrExpired) {
		return nil, nil
	}
	return raw, err
}

// Admit lets every peer in: a client listens on nothing, so whoever is there
// was dialled by its peer ID, which the transport has proven.
func (a *admission) Admit(context.Context, peer.ID, []byte) (bool, error) { return false, nil }

// Gone has nothing to forget.
func (a *admission) Gone(peer.ID) {}

// KeyError says that the owner's key could not be opened.
type KeyError struct{ Err error }

func (e *KeyError) Error() string { return e.Err.Error() }

// Unwrap is the keystore's error.
func (e *KeyError) Unwrap() error { return e.Err }

// UnreachableError says that nobody answered. Socket or Peers is what was
// tried; both may be empty.
type UnreachableError struct {
	Socket string
	Peers  []string
	Err    error
}

func (e *UnreachableError) Error() string {
	switch {
	case e.Socket != "":
		return fmt.Sprintf("no formd answers on %s", e.Socket)
	case len(e.Peers) == 1:
		return fmt.Sprintf("peer %s does not answer: %v", e.Peers[0], firstLine(e.Err))
	case len(e.Peers) > 1:
		return fmt.Sprintf("none of %d addresses answers: %v", len(e.Peers), firstLine(e.Err))
	case e.Err != nil:
		return "not reachable: " + firstLine(e.Err)
	}
	return "there is no formd here and no peer to ask"
}

// Unwrap is what the attempts said.
func (e *UnreachableError) Unwrap() error { return e.Err }

func firstLine(err error) string {
	if err == nil {
		return "no reason given"
	}
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
