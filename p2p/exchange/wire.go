package exchange

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// The bulk protocol. The client opens a stream and writes requests; each is
//
//	op byte, payload length uint32, payload
//
// and is answered in order. Numbers are big endian; a CID is one byte of length
// and its binary form; a frame is a uint32 length and that many bytes.
//
//	describe  payload: CID                        answer: frames, an empty one after
//	                                              the last block; if they are all,
//	                                              then the answer of have
//	have      payload: count uint16, CIDs         answer: one frame (encodeHave)
//	read      payload: CID, first, count uint32   answer: count frames; empty: not here
const (
	opDescribe = 1
	opHave     = 2
	opRead     = 3
)

// Bounds of the bulk protocol.
const (
	maxRequest = 8 << 10  // a have request of maxEntries CIDs is about 3 KiB
	maxEntries = 80       // entries of one have request: 64 layers and a base
	maxRun     = 256      // leaves of one read request
	maxPending = 64       // read requests in flight on one stream
	maxFrame   = 1 << 20  // a leaf or a node
	maxHave    = 4 << 20  // bitmaps of 32 Mi leaves
	maxOthers  = 16       // peers told of in one have answer
	maxAddrs   = 8        // addresses remembered of one peer
	maxNodes   = 64 << 10 // frames of one describe answer
	maxCID     = 64

	addrTTL   = 10 * time.Minute
	trickle   = 4 << 10          // bytes a second below which a frame counts as stalled
	idleTime  = 2 * time.Minute  // a server drops a stream without a request for so long
	writeTime = 30 * time.Second // a server waits so long for the client to take a frame
)

// absent is the length that stands for an entry the peer does not know.
const absent = ^uint32(0)

func appendCID(b []byte, c cid.Cid) []byte {
	raw := c.Bytes()
	return append(append(b, byte(len(raw))), raw...)
}

// cutCID takes a CID off the front of b.
func cutCID(b []byte) (cid.Cid, []byte, error) {
	if len(b) < 1 || int(b[0]) > maxCID || len(b) < 1+int(b[0]) {
		return cid.Undef, nil, fmt.Errorf("%w: short CID", ErrProtocol)
	}
	c, err := cid.Cast(b[1 : 1+int(b[0])])
	if err != nil {
		return cid.Undef, nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return c, b[1+int(b[0]):], nil
}

func appendRequest(b []byte, op byte, payload []byte) []byte {
	b = append(b, op)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// readRequest reads one request into buf, which it grows up to maxRequest.
func readRequest(r io.Reader, buf []byte) (op byte, payload []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxRequest {
		return 0, nil, fmt.Errorf("%w: request of %d bytes", ErrProtocol, n)
	}
	if uint32(cap(buf)) < n {
		buf = make([]byte, n)
	}
	payload = buf[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	return head[0], payload, nil
}

func encodeRead(entry cid.Cid, first, count int) []byte {
	b := appendCID(make([]byte, 0, 48), entry)
	b = binary.BigEndian.AppendUint32(b, uint32(first))
	return binary.BigEndian.AppendUint32(b, uint32(count))
}

func decodeRead(b []byte) (entry cid.Cid, first, count int, err error) {
	entry, b, err = cutCID(b)
	if err != nil {
		return cid.Undef, 0, 0, err
	}
	if len(b) != 8 {
		return cid.Undef, 0, 0, fmt.Errorf("%w: read request", ErrProtocol)
	}
	f, n := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	if n == 0 || n > maxRun || f > 1<<31 {
		return cid.Undef, 0, 0, fmt.Errorf("%w: run of %d leaves from %d", ErrProtocol, n, f)
	}
	return entry, int(f), int(n), nil
}

func encodeEntries(entries []cid.Cid) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(entries)))
	for _, c := range entries {
		b = appendCID(b, c)
	}
	return b
}

func decodeEntries(b []byte) ([]cid.Cid, error) {
	if len(b) < 2 {
		return nil, fmt.Errorf("%w: have request", ErrProtocol)
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > maxEntries {
		return nil, fmt.Errorf("%w: have request for %d entries", ErrProtocol, n)
	}
	b = b[2:]
	out := make([]cid.Cid, 0, n)
	for range n {
		c, rest, err := cutCID(b)
		if err != nil {
			return nil, err
		}
		out, b = append(out, c), rest
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: have request", ErrProtocol)
	}
	return out, nil
}

// encodeHave: the count of entries uint16, per entry a bitmap with its length (absent: not known), then the
// count of other peers, each with its ID and addresses.
func encodeHave(bitmaps [][]byte, others []peer.AddrInfo) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(bitmaps)))
	for _, m := range bitmaps {
		if m == nil {
			b = binary.BigEndian.AppendUint32(b, absent)
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(m)))
		b = append(b, m...)
	}
	b = append(b, byte(len(others)))
	for _, o := range others {
		b = append(append(b, byte(len(o.ID))), o.ID...)
		addrs := o.Addrs[:min(len(o.Addrs), maxAddrs)]
		b = append(b, byte(len(addrs)))
		for _, a := range addrs {
			raw := a.Bytes()
			b = binary.BigEndian.AppendUint16(b, uint16(len(raw)))
			b = append(b, raw...)
		}
	}
	return b
}

// decodeHave reads the answer for at most so many entries.
func decodeHave(b []byte, most int) ([][]byte, []peer.AddrInfo, error) {
	r := bytes.NewReader(b)
	take := func(n int) []byte {
		if n > r.Len() {
			return nil
		}
		out := make([]byte, n)
		_, _ = r.Read(out) // a bytes.Reader with n bytes left gives them
		return out
	}
	bad := fmt.Errorf("%w: have answer", ErrProtocol)
	head := take(2)
	if head == nil || int(binary.BigEndian.Uint16(head)) > most {
		return nil, nil, bad
	}
	bitmaps := make([][]byte, binary.BigEndian.Uint16(head))
	for i := range bitmaps {
		head := take(4)
		if head == nil {
			return nil, nil, bad
		}
		n := binary.BigEndian.Uint32(head)
		if n == absent {
			continue
		}
		if bitmaps[i] = take(int(n)); bitmaps[i] == nil {
			return nil, nil, bad
		}
	}
	count, err := r.ReadByte()
	if err != nil || count > maxOthers {
		return nil, nil, bad
	}
	others := make([]peer.AddrInfo, 0, count)
	for range count {
		o, err := readOther(r, take)
		if err != nil {
			return nil, nil, errors.Join(bad, err)
		}
		others = append(others, o)
	}
	if r.Len() != 0 {
		return nil, nil, bad
	}
	return bitmaps, others, nil
}

func readOther(r *bytes.Reader, take func(int) []byte) (o peer.AddrInfo, err error) {
	n, err := r.ReadByte()
	if err != nil {
		return o, err
	}
	if o.ID, err = peer.IDFromBytes(take(int(n))); err != nil {
		return o, err
	}
	addrs, err := r.ReadByte()
	if err != nil || addrs > maxAddrs {
		return o, errors.Join(io.ErrUnexpectedEOF, err)
	}
	for range addrs {
		head := take(2)
		if head == nil {
			return o, io.ErrUnexpectedEOF
		}
		a, err := ma.NewMultiaddrBytes(take(int(binary.BigEndian.Uint16(head))))
		if err != nil {
			return o, err
		}
		o.Addrs = append(o.Addrs, a)
	}
	return o, nil
}

// stallReader reads with a deadline that moves with progress: no byte for stall,
// or less than trickle on the average of one frame, ends it with ErrStalled.
type stallReader struct {
	s     network.Stream
	stall time.Duration
	until time.Time // the stream's deadline
}

// allow sets the deadline to at least stall from now, but not past end. Deadlines
// cost a timer, so one that is a little early stands.
func (r *stallReader) allow(now, end time.Time) error {
	slack := r.stall / 8
	if left := r.until.Sub(now); left > r.stall-slack && left <= r.stall && !r.until.After(end) {
		return nil
	}
	r.until = now.Add(r.stall)
	if r.until.After(end) {
		r.until = end
	}
	if err := r.s.SetReadDeadline(r.until); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	return nil
}

func (r *stallReader) full(buf []byte) error {
	now := time.Now()
	end := now.Add(r.stall + time.Duration(len(buf)/trickle)*time.Second)
	for done := 0; done < len(buf); now = time.Now() {
		if err := r.allow(now, end); err != nil {
			return err
		}
		n, err := r.s.Read(buf[done:])
		done += n
		switch {
		case done == len(buf):
			return nil
		case timedOut(err):
			return ErrStalled
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return nil
}

func timedOut(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// size reads a frame's length.
func (r *stallReader) size() (uint32, error) {
	var head [4]byte
	if err := r.full(head[:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(head[:]), nil
}
