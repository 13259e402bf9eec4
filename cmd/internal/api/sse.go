package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// keepAlive is how often an idle event stream sends a comment, so that a dead
// peer is noticed and idle connections are not cut.
const keepAlive = 15 * time.Second

// eventWriter writes server-sent events. It is safe for concurrent use.
type eventWriter struct {
	mu sync.Mutex
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newEventWriter(w http.ResponseWriter) *eventWriter {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	e := &eventWriter{w: w, rc: http.NewResponseController(w)}
	// A failed flush shows again at the next write.
	_ = e.rc.Flush()
	return e
}

// send writes one event; an empty name is the default one.
func (e *eventWriter) send(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if name != "" {
		fmt.Fprintf(&buf, "event: %s\n", name)
	}
	fmt.Fprintf(&buf, "data: %s\n\n", b)
	return e.write(buf.Bytes())
}

func (e *eventWriter) comment() error { return e.write([]byte(":\n\n")) }

func (e *eventWriter) write(b []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := e.w.Write(b); err != nil {
		return err
	}
	return e.rc.Flush()
}

// end closes the stream: with a problem event when err is not nil.
func (e *eventWriter) end(err error) {
	if err != nil {
		// The peer may be gone; there is nobody left to tell.
		_ = e.send("problem", asProblem(err))
	}
}

// streamError is a broken transport under an event stream.
type streamError struct{ err error }

func (s *streamError) Error() string { return s.err.Error() }
func (s *streamError) Unwrap() error { return s.err }

// readEvents calls f for each event until the stream ends cleanly (nil), breaks
// (*streamError) or f fails (its error).
func readEvents(r io.Reader, f func(event string, data []byte) error) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4<<10), 2*MaxBody)
	var name string
	var data []byte
	for sc.Scan() {
		line := sc.Bytes()
		switch {
		case len(line) == 0:
			if data != nil {
				if err := f(name, data); err != nil {
					return err
				}
			}
			name, data = "", nil
		case line[0] == ':':
		default:
			field, value, _ := bytes.Cut(line, []byte(":"))
			value = bytes.TrimPrefix(value, []byte(" "))
			switch string(field) {
			case "event":
				name = string(value)
			case "data":
				if data != nil {
					data = append(data, '\n')
				}
				data = append(data, value...)
			}
		}
	}
	if err := sc.Err(); err != nil {
		return &streamError{err}
	}
	if data != nil {
		return &streamError{errors.New("the event stream ended inside an event")}
	}
	return nil
}
