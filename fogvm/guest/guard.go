package guest

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Of the stream multiplexer's header (yamux, version 0): version, type, flags,
// stream and length, the last three big endian.
const (
	muxHeader = 12
	muxData   = 0 // length bytes follow
	muxPing   = 2
	muxSYN    = 1 // flag: opens a stream
)

// muxGuard is what a host reads of a guest's multiplexed stream. An agent sends
// no pings (there is no keep-alive) and opens no streams; each ping would cost
// the host a goroutine for as long as the guest does not read the answer, and
// each stream a buffer. Such a frame is an error, which ends the channel.
type muxGuard struct {
	io.ReadWriteCloser
	head [muxHeader]byte
	have int    // bytes of head read
	body uint32 // bytes of data still to come
}

// Read is called by one goroutine. After an error the stream is useless.
func (g *muxGuard) Read(p []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(p)
	if bad := g.scan(p[:n]); bad != nil {
		return 0, bad
	}
	return n, err
}

func (g *muxGuard) scan(p []byte) error {
	for len(p) > 0 {
		if g.body > 0 {
			n := min(uint64(g.body), uint64(len(p)))
			g.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(g.head[g.have:], p)
		g.have += n
		p = p[n:]
		if g.have < muxHeader {
			return nil
		}
		g.have = 0
		kind, flags := g.head[1], binary.BigEndian.Uint16(g.head[2:])
		if kind == muxPing || flags&muxSYN != 0 {
			return fmt.Errorf("%w: the guest sends what no agent does (type %d, flags %#x)", ErrFrame, kind, flags)
		}
		if kind == muxData {
			g.body = binary.BigEndian.Uint32(g.head[8:])
		}
	}
	return nil
}
