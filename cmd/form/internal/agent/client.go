package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// maxReply bounds a reply, in bytes: MaxPeers peers of a status.
const maxReply = 1 << 20

// Path is a replica that an agent has reached over the mesh, for a form. One
// connection can be made over it, or it is closed.
type Path struct{ conn net.Conn }

// Reach asks the agent on a socket for a replica, and returns when that has
// answered over the mesh. When hasty, the error is at once ErrSilent for one that did
// not answer lately.
func Reach(ctx context.Context, socket string, t Target, hasty bool) (*Path, error) {
	c, err := call(ctx, socket, request{Version: Version, Op: opReach, Target: t, Hasty: hasty}, nil)
	if err != nil {
		return nil, err
	}
	return &Path{c}, nil
}

// Close gives the path up.
func (p *Path) Close() error { return p.conn.Close() }

// Dial connects to a TCP port of the replica; the path is used up by it. The
// connection has CloseWrite. The error is ErrRefused when nothing listens there.
func (p *Path) Dial(ctx context.Context, port uint16) (net.Conn, error) {
	if err := exchange(ctx, p.conn, request{Version: Version, Op: opDial, Port: port}, &reply{}); err != nil {
		return nil, errors.Join(err, p.conn.Close())
	}
	return p.conn, nil
}

// StatusOf asks an agent how it is.
func StatusOf(ctx context.Context, socket string) (Status, error) {
	var r reply
	c, err := call(ctx, socket, request{Version: Version, Op: opStatus}, &r)
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, errors.Join(errors.New("agent: no status"), c.Close())
	}
	return *r.Status, c.Close()
}

// Stop makes an agent of any version end; its connections end with it. It returns
// when the agent has closed the connection.
func Stop(ctx context.Context, socket string) error {
	c, err := call(ctx, socket, request{Version: Version, Op: opStop}, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	_, err = c.Read(make([]byte, 1))
	if err = ignoreEOF(err); err != nil {
		return fmt.Errorf("agent: stop: %w", err)
	}
	return nil
}

// call connects and asks one thing.
func call(ctx context.Context, socket string, r request, into *reply) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if into == nil {
		into = &reply{}
	}
	if err := exchange(ctx, c, r, into); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// exchange sends a request and reads its reply, as long as ctx lasts.
func exchange(ctx context.Context, c net.Conn, r request, into *reply) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err := writeLine(c, r)
	if err == nil {
		err = readLine(c, maxReply, into)
	}
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return into.err()
}
