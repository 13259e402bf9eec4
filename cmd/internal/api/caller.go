package api

import (
	"context"

	"github.com/formthefog/formation/crdt/stmt"
)

// Caller is who makes a request, as the transport proved it.
type Caller struct {
	// Local: the unix socket. It proves a uid, and nothing about ownership.
	Local bool
	// Peer is the libp2p peer ID; empty on the unix socket and the web address.
	Peer string
	// Owner is the key whose session the connection presented; zero for none.
	Owner stmt.Key
}

type callerKey struct{}

// WithCaller marks ctx with who calls. Only a transport may call it.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerOf is who calls; the zero Caller may read public state only.
func CallerOf(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}

// access is who may use a route.
type access int

const (
	public access = iota // every admitted caller
	member               // the unix socket, and libp2p connections
	local                // the unix socket only: whoever operates the node
	owner                // a session of an owner; what it may see is checked per instance
)

func (a access) check(c Caller) error {
	switch {
	case a == public, a == local && c.Local, a == owner && !c.Owner.IsZero():
		return nil
	case a == member && (c.Local || c.Peer != ""):
		return nil
	case a == local:
		return Problemf(ExitNotAllowed, "only the node's own operator may do this").
			WithHint("run it on the node's machine, over its unix socket")
	case a == owner:
		return Problemf(ExitNotAllowed, "this needs a connection with the owner's session").
			WithHint("connect over libp2p (--peer); the unix socket proves no ownership")
	}
	return Problemf(ExitNotAllowed, "this address only answers reads of public state")
}
