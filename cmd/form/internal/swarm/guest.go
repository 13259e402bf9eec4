package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

// replyTimeout bounds how long a replica's host may take to reach its guest.
const replyTimeout = 30 * time.Second

// Proxy opens a connection to a guest's TCP port, by the node that runs the
// replica. The connection has CloseWrite.
func (c *Conn) Proxy(ctx context.Context, node stmt.Key, r api.ProxyRequest) (net.Conn, error) {
	return c.guest(ctx, node, api.ProtoProxy, r)
}

// Exec opens the framed standard streams of a command in a guest.
func (c *Conn) Exec(ctx context.Context, node stmt.Key, r api.ExecRequest) (net.Conn, error) {
	return c.guest(ctx, node, api.ProtoExec, r)
}

// APIOf asks one node of the swarm, as the owner.
func (c *Conn) APIOf(ctx context.Context, node stmt.Key) (*api.Client, error) {
	p, err := c.reach(ctx, node)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.client(p), nil
}

// Reach connects to a node of the swarm.
func (c *Conn) Reach(ctx context.Context, node stmt.Key) error {
	_, err := c.reach(ctx, node)
	return err
}

func (c *Conn) guest(ctx context.Context, node stmt.Key, proto string, request any) (_ net.Conn, err error) {
	p, err := c.reach(ctx, node)
	if err != nil {
		return nil, err
	}
	conn, err := c.node.Open(ctx, p, proto)
	if err != nil {
		return nil, &UnreachableError{Err: fmt.Errorf("open a stream to node %s: %w", node, err)}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, conn.Close())
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return nil, fmt.Errorf("set deadline: %w", err)
	}
	var reply api.StreamReply
	if err := api.WriteHeader(conn, request); err != nil {
		return nil, c.streamErr(ctx, node, err)
	}
	if err := api.ReadHeader(conn, &reply); err != nil {
		return nil, c.streamErr(ctx, node, err)
	}
	if err := reply.Err(); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return conn, conn.SetDeadline(time.Time{})
}

func (c *Conn) streamErr(ctx context.Context, node stmt.Key, err error) error {
	var p *api.Problem
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &p):
		return err
	}
	return &UnreachableError{Err: fmt.Errorf("node %s: %w", node, err)}
}

// reach connects to a node of the swarm, wherever it is.
func (c *Conn) reach(ctx context.Context, node stmt.Key) (peer.ID, error) {
	if err := c.connect(ctx); err != nil {
		return "", err
	}
	want := peer.ID(node.PeerID())
	c.mu.Lock()
	n, entry := c.node, c.entry
	c.mu.Unlock()
	if entry == want || slices.ContainsFunc(n.PeerInfo(), func(i p2p.PeerInfo) bool { return i.ID == want }) {
		return want, nil
	}
	addrs, err := c.addrsOf(ctx, node)
	if err != nil {
		return "", err
	}
	if _, err := c.dialAny(ctx, addrs); err != nil {
		c.forget(node)
		return "", fmt.Errorf("node %s: %w", node, err)
	}
	return want, nil
}

// forget makes the next attempt to reach a node ask where it is.
func (c *Conn) forget(node stmt.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.addrs, node)
}

// addrsOf is where a node says it listens.
func (c *Conn) addrsOf(ctx context.Context, node stmt.Key) ([]string, error) {
	c.mu.Lock()
	known := c.addrs[node]
	c.mu.Unlock()
	if len(known) > 0 {
		return known, nil
	}
	nodes, err := c.API().Nodes(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addrs = make(map[stmt.Key][]string, len(nodes))
	for _, n := range nodes {
		c.addrs[n.Key] = n.Addrs
	}
	if len(c.addrs[node]) == 0 {
		return nil, api.Problemf(api.ExitUnreachable, "the swarm knows no address of node %s", node)
	}
	return c.addrs[node], nil
}
