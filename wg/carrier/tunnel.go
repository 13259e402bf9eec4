package carrier

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"

	"github.com/formthefog/formation/wg/forward"
)

// A stream carries frames: length (uint16, big endian, not 0) ‖ bytes. Bytes are a
// WireGuard datagram or a greeting,
//
//	10 ‖ session (8) ‖ key (32) ‖ number of addresses (1) ‖ of these its own (1) ‖ address (18) each
//
// by which a side tells under what its probes are known and where it may be: first
// its own addresses, then those at which others have seen it. A side begins with
// one, and repeats it when its addresses change.
const (
	greetingByte = 0x10
	greetingSize = 43 // without addresses
	maxFrame     = 1<<16 - 1
	streamBuffer = 64 << 10
)

// queued is how many datagrams wait for a stream; more are dropped, as TCP inside
// takes loss for what it is, and delay for nothing.
const queued = 256

// greeting is what a side says of itself.
type greeting struct {
	secret
	whereabouts
}

// whereabouts is where a side may be.
type whereabouts struct {
	addrs []netip.AddrPort
	own   int // so many of addrs, the first, are the side's own
}

func (g greeting) marshal() []byte {
	addrs := g.addrs[:min(len(g.addrs), maxCandidates)]
	b := append(make([]byte, 0, greetingSize+len(addrs)*addrSize), greetingByte)
	b = binary.BigEndian.AppendUint64(b, g.session)
	b = append(b, g.key[:]...)
	b = append(b, byte(len(addrs)), byte(min(g.own, len(addrs))))
	for _, a := range addrs {
		b = appendAddr(b, a)
	}
	return b
}

func parseGreeting(b []byte) (greeting, error) {
	if len(b) < greetingSize || b[0] != greetingByte || b[41] > maxCandidates || b[42] > b[41] || len(b) != greetingSize+int(b[41])*addrSize {
		return greeting{}, fmt.Errorf("carrier: greeting of %d bytes is malformed", len(b))
	}
	g := greeting{secret: secret{session: binary.BigEndian.Uint64(b[1:]), key: [32]byte(b[9:41])}}
	for i := range int(b[41]) {
		a := readAddr(b[greetingSize+i*addrSize:])
		if !a.IsValid() {
			continue
		}
		if g.addrs = append(g.addrs, a); i < int(b[42]) {
			g.own++
		}
	}
	if g.secret == (secret{}) {
		return greeting{}, errors.New("carrier: greeting without a key")
	}
	return g, nil
}

// tunnel is a stream to a host.
type tunnel struct {
	stream io.ReadWriteCloser
	queue  chan []byte // of frames' bytes
	ended  chan struct{}
	end    sync.Once
}

func newTunnel(stream io.ReadWriteCloser) *tunnel {
	return &tunnel{stream: stream, queue: make(chan []byte, queued), ended: make(chan struct{})}
}

// close ends both directions.
func (t *tunnel) close() {
	t.end.Do(func() {
		close(t.ended)
		t.stream.Close() // what is lost by it is datagrams
	})
}

// offer queues bytes to be sent, which belong to the tunnel then; false: dropped.
func (t *tunnel) offer(b []byte) bool {
	select {
	case t.queue <- b:
		return true
	default:
		return false
	}
}

// write sends what is queued until the tunnel ends.
func (t *tunnel) write() error {
	w := bufio.NewWriterSize(t.stream, streamBuffer)
	for {
		var b []byte
		select {
		case <-t.ended:
			return nil
		case b = <-t.queue:
		default:
			if err := w.Flush(); err != nil {
				return err
			}
			select {
			case <-t.ended:
				return nil
			case b = <-t.queue:
			}
		}
		if err := writeFrame(w, b); err != nil {
			return err
		}
	}
}

func writeFrame(w io.Writer, b []byte) error {
	if _, err := w.Write(binary.BigEndian.AppendUint16(nil, uint16(len(b)))); err != nil {
		return err
	}
	_, err := w.Write(b)
	return err
}

// read hands out what the host sends until the stream ends. Neither function may
// keep its argument.
func (t *tunnel) read(greet func(greeting), datagram func([]byte)) error {
	r := bufio.NewReaderSize(t.stream, streamBuffer)
	buf := make([]byte, maxFrame)
	for {
		b, err := readFrame(r, buf)
		if err != nil {
			return err
		}
		if forward.Is(b) {
			datagram(b)
			continue
		}
		g, err := parseGreeting(b)
		if err != nil {
			return err
		}
		greet(g)
	}
}

// readFrame reads a frame into buf, which holds the longest.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n == 0 {
		return nil, errors.New("carrier: empty frame")
	}
	_, err := io.ReadFull(r, buf[:n])
	return buf[:n], err
}
