package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
)

func newForward(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "forward [LOCAL:]PORT HOST", Short: "listen on 127.0.0.1 for a guest's TCP port",
		Long: `Listens on 127.0.0.1 and passes every connection to a TCP port of a guest, until
it is interrupted. Without LOCAL, or when it is 0, a free port is taken if PORT
itself is. Each new connection goes to a replica that answers, unless HOST names
one. The listening address is printed on stdout.`,
		Example: "  form forward 8080 hello-server\n  form forward 9000:8080 hello-server/1",
		Args:    argsBetween(2, 2, "a [LOCAL:]PORT and a HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			local, port, err := parseForward(args[0])
			if err != nil {
				return err
			}
			return a.withInstance(cmd.Context(), args[1], func(c *swarm.Conn, i api.Instance, h host) error {
				return a.runForward(cmd.Context(), c, i, h, local, port)
			})
		},
	}
	a.addVia(c.Flags())
	return c
}

// parseForward reads [LOCAL:]PORT; local is -1 when it was not given.
func parseForward(s string) (local, port int, err error) {
	l, p, ok := strings.Cut(s, ":")
	if !ok {
		port, err = parsePort(s)
		return -1, port, err
	}
	if local, err = strconv.Atoi(l); err != nil || local < 0 || local > 65535 {
		return 0, 0, cli.Errorf(api.ExitUsage, "%q is not a local port (0–65535)", l)
	}
	port, err = parsePort(p)
	return local, port, err
}

func listenLocal(local, port int) (net.Listener, error) {
	want := local
	if local < 0 {
		want = port
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(want)))
	if err != nil && local < 0 {
		l, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, cli.Errorf(api.ExitFailed, "listen: %w", err).Hint("any free port: form forward 0:%d HOST", port)
	}
	return l, nil
}

func (a *app) runForward(ctx context.Context, c *swarm.Conn, i api.Instance, h host, local, port int) error {
	if err := a.mine(i); err != nil {
		return err
	}
	l, err := listenLocal(local, port)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	v := struct {
		Listen   string `json:"listen"`
		Instance string `json:"instance"`
		Port     int    `json:"port"`
	}{l.Addr().String(), i.ID, port}
	if err := a.p.Event(v, v.Listen); err != nil {
		return errors.Join(err, l.Close())
	}
	a.p.Note("forwarding to port %d of %s; Ctrl-C ends it", port, h.text)
	var open sync.WaitGroup
	defer open.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return stopped(ctx, ctx.Err())
			}
			return fmt.Errorf("accept: %w", err)
		}
		open.Go(func() {
			if err := a.forwardOne(ctx, c, i.ID, h, port, conn); err != nil && ctx.Err() == nil {
				a.p.Warn("connection from %s: %v", conn.RemoteAddr(), err)
			}
		})
	}
}

// forwardOne serves one connection. The instance is looked up anew: its
// replicas may have moved since.
func (a *app) forwardOne(ctx context.Context, c *swarm.Conn, id string, h host, port int, local net.Conn) (err error) {
	defer local.Close()
	i, err := c.API().Instance(ctx, id)
	if err != nil {
		return err
	}
	remote, err := a.dialGuest(ctx, c, i, h, port)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { local.Close() })
	defer stop()
	return agent.Splice(local, remote)
}
