package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// ExecIO is a client's side of a command. Stdin may be nil (empty input).
// Stdout and Stderr must not be nil. Resize and Signals may be nil.
type ExecIO struct {
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Resize  <-chan WindowSize
	Signals <-chan byte // signal numbers 1–31
}

// RunExec drives a command over conn, a stream of exec frames (what Conn.Exec
// returns, or any relay of it), until it ends. It returns the exit code; 128 +
// signal when a signal ended it. conn is closed on return. A blocked read of
// Stdin may outlive the call; its goroutine ends at the reader's next return.
func RunExec(ctx context.Context, conn net.Conn, stdio ExecIO) (code int, err error) {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	done := make(chan struct{})
	defer close(done)
	defer conn.Close()
	out := &frameWriter{w: conn}
	window := newCredit()
	go out.copyStdin(stdio.Stdin, window, done)
	go out.copyEvents(done, stdio.Resize, stdio.Signals)
	for {
		t, payload, err := ReadFrame(conn)
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("exec: connection to the guest ended: %w", err)
		}
		switch t {
		case FrameStdout:
			_, err = stdio.Stdout.Write(payload)
		case FrameStderr:
			_, err = stdio.Stderr.Write(payload)
		case FrameTaken:
			window.give(binary.BigEndian.Uint32(payload))
		case FrameExit:
			return int(int32(binary.BigEndian.Uint32(payload))), nil
		case FrameError:
			return 0, fmt.Errorf("exec: %s", payload)
		default:
			err = fmt.Errorf("%w: type %d from the guest", ErrFrame, t)
		}
		if err != nil {
			return 0, err
		}
	}
}

// frameWriter serialises frames of several goroutines.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) write(t FrameType, payload []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return WriteFrame(f.w, t, payload)
}

// copyStdin sends r as the window allows, and its end.
func (f *frameWriter) copyStdin(r io.Reader, window *credit, done <-chan struct{}) {
	buf := make([]byte, MaxFrame)
	for r != nil {
		size := window.take(done)
		if size == 0 {
			return
		}
		n, err := r.Read(buf[:size])
		window.give(uint32(size - n))
		if n == 0 {
			window.give(frameHeader)
		} else if f.write(FrameStdin, buf[:n]) != nil {
			return // the connection is gone, which the reader reports
		}
		if err != nil {
			break // what cannot be read any more is at its end
		}
	}
	_ = f.write(FrameEOF, nil)
}

func (f *frameWriter) copyEvents(done <-chan struct{}, sizes <-chan WindowSize, signals <-chan byte) {
	for {
		var err error
		select {
		case <-done:
			return
		case s, ok := <-sizes:
			if !ok {
				sizes = nil
				continue
			}
			err = f.write(FrameResize, encodeSize(s))
		case sig, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			err = f.write(FrameSignal, []byte{sig})
		}
		if err != nil {
			return
		}
	}
}

func encodeSize(s WindowSize) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, s.Rows), s.Cols)
}

func decodeSize(b []byte) WindowSize {
	return WindowSize{Rows: binary.BigEndian.Uint16(b), Cols: binary.BigEndian.Uint16(b[2:])}
}

func encodeExit(code int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(int32(code))) }
