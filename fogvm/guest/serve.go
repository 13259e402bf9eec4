package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/yamux"
)

// handler is what the agent does with what the host sends.
type handler interface {
	// control handles one message; it must not block.
	control(toGuest)
	// exec runs a command over its stream and closes the stream.
	exec(ctx context.Context, req ExecRequest, stream net.Conn)
	// logs sends the entrypoint's output to w until ctx ends or w fails.
	logs(ctx context.Context, w io.Writer)
	// news serves a mesh stream until ctx or the stream ends.
	news(ctx context.Context, stream net.Conn)
}

// serve is the guest's half of the channel: it answers the host's handshake,
// sends info and then every status it is given, and hands what arrives to h.
// It ends when rw does, or without an error when parent is done.
func serve(parent context.Context, rw io.ReadWriteCloser, info Info, statuses <-chan Status, h handler) error {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	defer stop()
	if _, err := rw.Write(preamble()); err != nil {
		return fmt.Errorf("write preamble: %w", err)
	}
	if err := readPreamble(rw); err != nil {
		return err
	}
	session, err := yamux.Server(rw, muxConfig())
	if err != nil {
		return err
	}
	defer session.Close()
	var streams sync.WaitGroup
	defer streams.Wait()
	defer cancel()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			// The parent's: it is done before its end reaches ctx, and the host
			// may hear of it in between.
			if parent.Err() != nil {
				return nil
			}
			return fmt.Errorf("control channel: %w", err)
		}
		streams.Go(func() { serveStream(ctx, stream, info, statuses, h) })
	}
}

func serveStream(ctx context.Context, stream net.Conn, info Info, statuses <-chan Status, h handler) {
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	var first openStream
	if err := readJSON(stream, &first); err != nil {
		return
	}
	switch first.Kind {
	case streamControl:
		serveControl(ctx, stream, info, statuses, h)
	case streamExec:
		if first.Exec != nil && first.Exec.Validate() == nil {
			h.exec(ctx, *first.Exec, stream)
		}
	case streamLogs:
		h.logs(ctx, stream)
	case streamMesh:
		h.news(ctx, stream)
	}
}

func serveControl(ctx context.Context, stream net.Conn, info Info, statuses <-chan Status, h handler) {
	if err := writeJSON(stream, toHost{Hello: &info}); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var writer sync.WaitGroup
	defer writer.Wait()
	defer cancel()
	writer.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-statuses:
				if err := writeJSON(stream, toHost{Status: &s}); err != nil {
					return
				}
			}
		}
	})
	for {
		var m toGuest
		if err := readJSON(stream, &m); err != nil {
			return
		}
		h.control(m)
	}
}
