package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// guestVMs reaches guests; *fogvm.Manager has these methods.
type guestVMs interface {
	Dial(ctx context.Context, id string, port int) (net.Conn, error)
	Exec(ctx context.Context, id string, req guest.ExecRequest, conn net.Conn) error
	Logs(ctx context.Context, id string, o fogvm.LogOptions) (io.ReadCloser, error)
	List() []fogvm.Status
}

// guestStreams serves proxy/1 and exec/1 to the owner of an instance.
type guestStreams struct {
	vms   guestVMs
	view  func() *crdt.View
	owner func(peer.ID) stmt.Key
	// refused is told of streams that are refused.
	refused func(from peer.ID, reason string, err error)
	log     *slog.Logger
}

// headerTimeout bounds how long a stream may take to say what it wants.
const headerTimeout = 10 * time.Second

// authorise says which VM a stream may reach. Errors are Problems.
func (g *guestStreams) authorise(from peer.ID, instance string, slot int) (string, error) {
	spec, ok := g.view().Instance(instance)
	if !ok {
		return "", api.Problemf(api.ExitNotFound, "no instance %s", instance)
	}
	if owner := g.owner(from); owner.IsZero() || owner != spec.Owner {
		return "", api.Problemf(api.ExitNotAllowed, "this connection does not speak for the owner of %s", spec.Name)
	}
	id := plan.VMID(instance, slot)
	if !slices.ContainsFunc(g.vms.List(), func(s fogvm.Status) bool { return s.ID == id }) {
		return "", api.Problemf(api.ExitNotFound, "replica %d of %s does not run on this node", slot, spec.Name)
	}
	return id, nil
}

// open reads a stream's header and answers it with what prepare says. It
// reports whether the stream goes on.
func (g *guestStreams) open(from peer.ID, c net.Conn, header any, prepare func() error) bool {
	deadline := func(t time.Time) bool { return c.SetDeadline(t) == nil }
	if !deadline(time.Now().Add(headerTimeout)) {
		return false
	}
	err := api.ReadHeader(c, header)
	if err == nil {
		err = prepare()
	}
	reply := api.StreamReply{OK: err == nil}
	if err != nil {
		reply.Error, reply.Exit = err.Error(), api.ExitOf(err)
		g.log.Debug("guest stream refused", "peer", from, "err", err)
		if reason := refusalReason(err); reason != "" {
			g.refused(from, reason, err)
		}
	}
	// Preparing may have taken its time; the answer gets a deadline of its own.
	if !deadline(time.Now().Add(headerTimeout)) || api.WriteHeader(c, reply) != nil {
		return false
	}
	return err == nil && deadline(time.Time{})
}

// proxy serves api.ProtoProxy.
func (g *guestStreams) proxy(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	var req api.ProxyRequest
	var inner net.Conn
	ok := g.open(from, c, &req, func() error {
		if req.Port < 1 || req.Port > 65535 {
			return api.Problemf(api.ExitUsage, "%d is not a TCP port", req.Port)
		}
		id, err := g.authorise(from, req.Instance, req.Slot)
		if err != nil {
			return err
		}
		dial, cancel := context.WithTimeout(ctx, headerTimeout)
		defer cancel()
		if inner, err = g.vms.Dial(dial, id, req.Port); err != nil {
			return api.Problemf(api.ExitUnreachable, "port %d: %v", req.Port, err)
		}
		return nil
	})
	if inner != nil {
		defer inner.Close()
	}
	if ok {
		splice(ctx, c, inner)
	}
}

// exec serves api.ProtoExec.
func (g *guestStreams) exec(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	var req api.ExecRequest
	var cmd guest.ExecRequest
	var id string
	ok := g.open(from, c, &req, func() (err error) {
		if err := json.Unmarshal(req.Exec, &cmd); err != nil {
			return api.Problemf(api.ExitUsage, "exec: %v", err)
		}
		if len(cmd.Argv) == 0 {
			return api.Problemf(api.ExitUsage, "exec: no command")
		}
		id, err = g.authorise(from, req.Instance, req.Slot)
		return err
	})
	if !ok {
		return
	}
	if err := g.vms.Exec(ctx, id, cmd, c); err != nil && ctx.Err() == nil {
		text := err.Error()
		// The client may be the one that went away.
		_ = guest.WriteFrame(c, guest.FrameError, []byte(text[:min(len(text), 4<<10)]))
	}
}

// splice copies both ways until both directions have ended or ctx does. The end
// of one direction is passed on as a half-close.
func splice(ctx context.Context, a, b net.Conn) {
	stop := context.AfterFunc(ctx, func() {
		_ = a.Close()
		_ = b.Close()
	})
	defer stop()
	var g errgroup.Group
	pipe := func(dst, src net.Conn) error {
		_, err := io.Copy(dst, src)
		if w, ok := dst.(interface{ CloseWrite() error }); ok && err == nil {
			return w.CloseWrite()
		}
		// Without half-close, or after an error, the other direction ends too.
		return errors.Join(err, a.Close(), b.Close())
	}
	g.Go(func() error { return pipe(a, b) })
	g.Go(func() error { return pipe(b, a) })
	// Either side may break a connection at any time; there is nobody to tell.
	_ = g.Wait()
}
