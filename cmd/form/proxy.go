package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
)

func newProxy(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "proxy HOST PORT", Short: "raw bytes to a guest's TCP port on stdin and stdout",
		Long: `Connects standard input and output to a TCP port of a guest: an ssh ProxyCommand.
Any port works, EXPOSEd or not, for the owner only. HOST is an instance's name,
its ID, one replica of it (name/0), or a name or an address of the mesh.

The bytes go over the mesh, end to end encrypted, where the guest answers on it, and
else by a stream to the replica's host.`,
		Example: `  ssh -o ProxyCommand='form proxy %h %p' bigdog@hello-server
  printf 'GET / HTTP/1.0\r\n\r\n' | form proxy hello-server/1 8080`,
		Args: argsBetween(2, 2, "a HOST and a PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := parsePort(args[1])
			if err != nil {
				return err
			}
			return a.withInstance(cmd.Context(), args[0], func(c *swarm.Conn, i api.Instance, h host) error {
				conn, err := a.dialGuest(cmd.Context(), c, i, h, port)
				if err != nil {
					return err
				}
				return pipe(cmd.Context(), conn, a.stdin, a.stdout)
			})
		},
	}
	a.addVia(c.Flags())
	return c
}

func parsePort(s string) (int, error) {
	p, err := strconv.Atoi(s)
	if err != nil || p < 1 || p > 65535 {
		return 0, cli.Errorf(api.ExitUsage, "%q is not a port (1–65535)", s)
	}
	return p, nil
}

// dialGuest connects to a port of the best replica that answers.
func (a *app) dialGuest(ctx context.Context, c *swarm.Conn, i api.Instance, h host, port int) (conn net.Conn, err error) {
	if err := a.mine(i); err != nil {
		return nil, err
	}
	err = a.onReplica(i, h, func(r api.Replica) error {
		conn, err = a.dialReplica(ctx, c, i, r, h, port)
		return err
	})
	return conn, err
}

// pipe copies both ways until the guest ends its side or ctx ends. The end of
// in is passed on as a half-close, so that answers still arrive.
func pipe(ctx context.Context, conn net.Conn, in io.Reader, out io.Writer) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, in)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			err = errors.Join(err, half.CloseWrite())
		}
		sent <- err
	}()
	_, err := io.Copy(out, conn)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("connection to the guest: %w", errors.Join(err, conn.Close()))
	}
	// The guest has said everything. A sender that is still blocked on in ends
	// with the process.
	select {
	case err = <-sent:
	default:
	}
	if cerr := conn.Close(); err == nil {
		err = cerr
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
