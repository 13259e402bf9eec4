package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// FrameType says what a frame carries.
type FrameType byte

// Frame types. Data frames carry at most MaxFrame bytes, FrameJSON at most
// MaxConfigBytes, the others the size noted.
const (
	FrameJSON   FrameType = 1 // one JSON message
	FrameStdin  FrameType = 2
	FrameStdout FrameType = 3
	FrameStderr FrameType = 4
	FrameEOF    FrameType = 5  // stdin ends; empty
	FrameResize FrameType = 6  // rows, columns: two uint16, big endian
	FrameSignal FrameType = 7  // one byte: the signal number, 1–31
	FrameExit   FrameType = 8  // exit code: int32, big endian; the last frame
	FrameError  FrameType = 9  // text: the command could not be run; the last frame
	FrameTaken  FrameType = 10 // so much more stdin may be sent: uint32, big endian (see stdinWindow)
)

const (
	frameHeader = 5
	// maxExecError bounds the text of a FrameError.
	maxExecError = 4 << 10
)

// ErrFrame is wrapped by every error about a malformed or oversized frame.
var ErrFrame = errors.New("bad frame")

// frameLimits gives the smallest and largest payload of a type.
func frameLimits(t FrameType) (low, high int, ok bool) {
	switch t {
	case FrameJSON:
		return 2, MaxConfigBytes, true
	case FrameStdin, FrameStdout, FrameStderr:
		return 0, MaxFrame, true
	case FrameError:
		return 0, maxExecError, true
	case FrameEOF:
		return 0, 0, true
	case FrameResize, FrameExit, FrameTaken:
		return 4, 4, true
	case FrameSignal:
		return 1, 1, true
	}
	return 0, 0, false
}

// WriteFrame writes one frame in a single Write, so frames of several
// goroutines only need a lock around this call.
func WriteFrame(w io.Writer, t FrameType, payload []byte) error {
	low, high, ok := frameLimits(t)
	if !ok || len(payload) < low || len(payload) > high {
		return fmt.Errorf("%w: type %d with %d bytes", ErrFrame, t, len(payload))
	}
	buf := make([]byte, frameHeader+len(payload))
	buf[0] = byte(t)
	binary.BigEndian.PutUint32(buf[1:], uint32(len(payload)))
	copy(buf[frameHeader:], payload)
	_, err := w.Write(buf)
	return err
}

// ReadFrame reads one frame. The size is checked against the type's bounds
// before anything is allocated. At a clean end it returns io.EOF. The payload
// belongs to the caller.
func ReadFrame(r io.Reader) (FrameType, []byte, error) {
	var head [frameHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, nil, fmt.Errorf("%w: torn header", ErrFrame)
		}
		return 0, nil, err
	}
	t, size := FrameType(head[0]), binary.BigEndian.Uint32(head[1:])
	low, high, ok := frameLimits(t)
	if !ok || uint64(size) < uint64(low) || uint64(size) > uint64(high) {
		return 0, nil, fmt.Errorf("%w: type %d with %d bytes", ErrFrame, t, size)
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, fmt.Errorf("%w: torn payload", ErrFrame)
	}
	return t, payload, nil
}

func writeJSON(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	return WriteFrame(w, FrameJSON, data)
}

func readJSON(r io.Reader, v any) error {
	t, payload, err := ReadFrame(r)
	if err != nil {
		return err
	}
	if t != FrameJSON {
		return fmt.Errorf("%w: type %d where a message was due", ErrFrame, t)
	}
	if err := json.Unmarshal(payload, v); err != nil {
		return fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return nil
}
