package fogvm

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/formthefog/formation/fogvm/guest"
)

// MeshPort carries the datagrams of a guest's WireGuard. What it carries is the
// guest's word or that of strangers: only its size is known. One goroutine at a
// time may Receive; the rest is for several.
type MeshPort struct {
	conn net.Conn
	r    *bufio.Reader

	mu  sync.Mutex
	buf []byte
}

// MeshLocation is where a peer of the guest really is, by its WireGuard key.
type MeshLocation struct {
	Key [32]byte
	At  netip.AddrPort
}

// What a frame between formd and a shim is, after its length (uint16, of what
// follows).
const (
	meshFrameDatagram  = 1 // an address, then the datagram
	meshFrameLocations = 2 // a key and an address each; all that is known
)

const (
	meshAddress  = 18 // IPv6 or IPv4 in it, port
	meshLocation = 32 + meshAddress
	maxMeshFrame = 1 + guest.MaxLocations*meshLocation
)

var errMeshFrame = errors.New("bad frame of the mesh")

// NewMeshPort is the guest's end too: of a VM that is only bookkeeping.
func NewMeshPort(c net.Conn) *MeshPort { return &MeshPort{conn: c, r: bufio.NewReaderSize(c, 64<<10)} }

// Close ends the port. The guest's WireGuard goes on; what it sends is lost.
func (p *MeshPort) Close() error { return p.conn.Close() }

// Send hands over a datagram. It waits until the other side takes it. One that is
// too large for the guest's network is lost.
func (p *MeshPort) Send(b []byte, addr netip.AddrPort) error {
	if len(b) > maxDatagram {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = binary.BigEndian.AppendUint16(p.buf[:0], uint16(1+meshAddress+len(b)))
	p.buf = appendMeshAddress(append(p.buf, meshFrameDatagram), addr)
	return p.write(append(p.buf, b...))
}

// Locate says where the guest's peers are, as far as is known.
func (p *MeshPort) Locate(where []MeshLocation) error {
	where = where[:min(len(where), guest.MaxLocations)]
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buf = append(binary.BigEndian.AppendUint16(p.buf[:0], uint16(1+len(where)*meshLocation)), meshFrameLocations)
	for _, l := range where {
		p.buf = appendMeshAddress(append(p.buf, l.Key[:]...), l.At)
	}
	return p.write(p.buf)
}

func (p *MeshPort) write(frame []byte) error {
	p.buf = frame
	if _, err := p.conn.Write(frame); err != nil {
		return fmt.Errorf("mesh port: %w", err)
	}
	return nil
}

// Receive returns the next datagram and whom it is for, or whom it is from. b is
// valid until the next call. An error is the end.
func (p *MeshPort) Receive() (b []byte, addr netip.AddrPort, err error) {
	for {
		b, addr, _, err := readMeshFrame(p.r)
		if err != nil || addr.IsValid() {
			return b, addr, err
		}
	}
}

// readMeshFrame reads a frame: a datagram, when addr is valid, or locations.
func readMeshFrame(r io.Reader) (b []byte, addr netip.AddrPort, where []MeshLocation, err error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, addr, nil, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n < 1 || n > maxMeshFrame {
		return nil, addr, nil, fmt.Errorf("%w: %d bytes", errMeshFrame, n)
	}
	frame := make([]byte, n)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, addr, nil, fmt.Errorf("%w: %w", errMeshFrame, err)
	}
	kind, rest := frame[0], frame[1:]
	switch {
	case kind == meshFrameDatagram && len(rest) >= meshAddress && len(rest) <= meshAddress+maxDatagram:
		if addr = meshAddressOf(rest); !addr.IsValid() || addr.Port() == 0 {
			return nil, netip.AddrPort{}, nil, fmt.Errorf("%w: no address", errMeshFrame)
		}
		return rest[meshAddress:], addr, nil, nil
	case kind == meshFrameLocations && len(rest)%meshLocation == 0:
		for ; len(rest) > 0; rest = rest[meshLocation:] {
			where = append(where, MeshLocation{[32]byte(rest[:32]), meshAddressOf(rest[32:])})
		}
		return nil, addr, where, nil
	}
	return nil, addr, nil, fmt.Errorf("%w: kind %d, %d bytes", errMeshFrame, kind, n)
}

func appendMeshAddress(b []byte, a netip.AddrPort) []byte {
	ip := a.Addr().As16()
	return binary.BigEndian.AppendUint16(append(b, ip[:]...), a.Port())
}

func meshAddressOf(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)).Unmap(), binary.BigEndian.Uint16(b[16:]))
}

// Mesh opens the port of a guest's WireGuard. There is one: opening it ends the
// one before.
func (m *Manager) Mesh(ctx context.Context, id string) (*MeshPort, error) {
	c, err := m.openFor(ctx, id, opMesh)
	if err != nil {
		return nil, err
	}
	return NewMeshPort(c), nil
}

// MeshNews opens a stream by which a guest is told statements: guest.Teller.
// It ends when the guest reboots.
func (m *Manager) MeshNews(ctx context.Context, id string) (net.Conn, error) {
	return m.openFor(ctx, id, opMeshNews)
}

func (m *Manager) openFor(ctx context.Context, id, op string) (net.Conn, error) {
	inst, err := m.live(id)
	if err != nil {
		return nil, err
	}
	return inst.open(ctx, shimRequest{Op: op})
}

// keyText is a WireGuard key as it is written.
func keyText(key [32]byte) string { return base64.StdEncoding.EncodeToString(key[:]) }
