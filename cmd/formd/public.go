package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/routes"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/policy"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/reconcile"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/p2p/fair"
)

// Streams to public ports at once, from one node and from all.
const (
	maxPublicOfOne = 1024
	maxPublic      = 4096
)

var errManyPublic = errors.New("too many streams to public ports")

// publicVMs reaches ports of guests; *fogvm.Manager has these methods.
type publicVMs interface {
	Dial(ctx context.Context, id string, port int) (net.Conn, error)
	DialUDP(ctx context.Context, id string, port int) (net.Conn, error)
	List() []fogvm.Status
}

// publicPorts opens public ports of the guests on this node: for its own ingress,
// and by public/1 for those of other nodes.
type publicPorts struct {
	vms     publicVMs
	view    func() *crdt.View
	streams *guestStreams
	places  *fair.Places
}

// open opens a port of a guest that its instance offers to everybody, and no
// other. Errors are Problems.
func (p *publicPorts) open(ctx context.Context, r api.PublicRequest) (net.Conn, error) {
	spec, ok := p.view().Instance(r.Instance)
	if !ok {
		return nil, api.Problemf(api.ExitNotFound, "no instance %s", r.Instance)
	}
	if !policy.IsPublic(&spec, r.Proto, r.Port) {
		return nil, api.Problemf(api.ExitNotAllowed, "%s does not offer %d/%s to everybody", spec.Name, r.Port, r.Proto)
	}
	id := plan.VMID(r.Instance, r.Slot)
	if !slices.ContainsFunc(p.vms.List(), func(s fogvm.Status) bool { return s.ID == id }) {
		return nil, api.Problemf(api.ExitNotFound, "replica %d of %s does not run on this node", r.Slot, spec.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, headerTimeout)
	defer cancel()
	dial := p.vms.Dial
	if r.Proto == "udp" {
		dial = p.vms.DialUDP
	}
	c, err := dial(ctx, id, r.Port)
	if err != nil {
		return nil, api.Problemf(api.ExitUnreachable, "port %d/%s: %v", r.Port, r.Proto, err)
	}
	return c, nil
}

// serve serves api.ProtoPublic to nodes of the network.
func (p *publicPorts) serve(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	place := p.places.Enter(from, func() { c.Close() })
	if place == nil {
		p.streams.refused(from, refusedRate, errManyPublic)
		return
	}
	defer p.places.Leave(place)
	var req api.PublicRequest
	var inner net.Conn
	ok := p.streams.open(from, c, &req, func() (err error) {
		if k, err := reconcile.KeyOf(from); err != nil || !p.view().IsMember(k, stmt.RoleNode) {
			return api.Problemf(api.ExitNotAllowed, "%s is no node of this network", from)
		}
		inner, err = p.open(ctx, req)
		return err
	})
	if inner != nil {
		defer inner.Close()
	}
	if ok {
		splice(ctx, c, inner)
	}
}

// publicDialer reaches public ports of replicas, wherever they are; it is an
// ingress's Dialer.
type publicDialer struct {
	self  stmt.Key
	node  streamOpener
	local *publicPorts
}

// streamOpener opens streams; *p2p.Node is one.
type streamOpener interface {
	Open(ctx context.Context, p peer.ID, proto string) (net.Conn, error)
}

// Dial implements ingress.Dialer. replica is what routes.ReplicaID made.
func (d *publicDialer) Dial(ctx context.Context, replica, network string, port int) (net.Conn, error) {
	instance, at, err := routes.ParseReplica(replica)
	if err != nil {
		return nil, err
	}
	req := api.PublicRequest{Instance: instance, Slot: at.Slot, Port: port, Proto: network}
	if at.Node == d.self {
		return d.local.open(ctx, req)
	}
	c, err := d.node.Open(ctx, peer.ID(at.Node.PeerID()), api.ProtoPublic)
	if err != nil {
		return nil, err
	}
	if err := askPublic(ctx, c, req); err != nil {
		return nil, fmt.Errorf("public port: %w", errors.Join(err, c.Close()))
	}
	return c, nil
}

func askPublic(ctx context.Context, c net.Conn, req api.PublicRequest) error {
	ends := time.Now().Add(headerTimeout)
	if t, ok := ctx.Deadline(); ok && t.Before(ends) {
		ends = t
	}
	var reply api.StreamReply
	err := c.SetDeadline(ends)
	if err == nil {
		err = api.WriteHeader(c, req)
	}
	if err == nil {
		err = api.ReadHeader(c, &reply)
	}
	if err == nil {
		err = reply.Err()
	}
	return errors.Join(err, c.SetDeadline(time.Time{}))
}
