package fogvm

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/formthefog/formation/fogvm/guest"
)

// maxMeshQueue is how many of the guest's datagrams wait for formd; more are
// dropped, as by any network.
const maxMeshQueue = 512

// shimMesh is the shim's part in the guest's mesh: datagrams go from its NIC to
// formd and back. It outlives both the machine and formd; what either sends while
// the other is away is lost. The zero value is ready.
type shimMesh struct {
	mu    sync.Mutex
	table virtuals
	wire  *wire            // of the machine that runs; nil: none
	port  *meshQueue       // formd's; nil: it is away
	where []guest.Location // as last told
}

// meshQueue is one connection of formd.
type meshQueue struct {
	c     net.Conn
	queue chan meshOut
}

type meshOut struct {
	b  []byte
	to netip.AddrPort
}

// plug says by what wire the guest is reached.
func (m *shimMesh) plug(w *wire) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wire = w
}

// take takes a frame that is for the mesh; false: it is not. The frame is the
// callee's then. It never waits.
func (m *shimMesh) take(frame []byte) bool {
	if !toMesh(frame) {
		return false
	}
	b, at, ok := meshDatagram(frame)
	if !ok {
		return true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	to, known := m.table.real(at)
	if !known || m.port == nil {
		return true
	}
	select {
	case m.port.queue <- meshOut{b, to}:
	default:
	}
	return true
}

// deliver brings the guest a datagram.
func (m *shimMesh) deliver(buf, b []byte, from netip.AddrPort) []byte {
	m.mu.Lock()
	at, ok := m.table.virtual(from)
	w := m.wire
	m.mu.Unlock()
	if !ok || w == nil {
		return buf
	}
	buf = appendMeshFrame(buf[:0], b, at)
	w.send(buf)
	return buf
}

// locate takes where peers are, and returns it as the guest sees it.
func (m *shimMesh) locate(where []MeshLocation) []guest.Location {
	m.mu.Lock()
	defer m.mu.Unlock()
	reals := make([]netip.AddrPort, len(where))
	for i, l := range where {
		reals[i] = l.At
	}
	m.table.tell(reals)
	m.where = nil
	for _, l := range where {
		if at, ok := m.table.virtual(l.At); ok {
			m.where = append(m.where, guest.Location{Key: keyText(l.Key), At: at})
		}
	}
	return m.where
}

func (m *shimMesh) located() []guest.Location {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.where
}

// connect makes c the one connection of formd.
func (m *shimMesh) connect(c net.Conn) *meshQueue {
	q := &meshQueue{c, make(chan meshOut, maxMeshQueue)}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.port != nil {
		m.port.c.Close()
	}
	m.port = q
	return q
}

func (m *shimMesh) disconnect(q *meshQueue) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.port == q {
		m.port = nil
	}
}

// serveMesh carries datagrams until formd leaves or ctx ends.
func (s *shim) serveMesh(ctx context.Context, c *lineConn) {
	q := s.mesh.connect(c) // before the reply, after which nothing is lost
	defer s.mesh.disconnect(q)
	if !s.reply(c, nil) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer cancel()
	writing.Go(func() {
		defer c.Close()
		port := NewMeshPort(c)
		for {
			select {
			case <-ctx.Done():
				return
			case out := <-q.queue:
				if port.Send(out.b, out.to) != nil {
					return // formd has left
				}
			}
		}
	})
	var buf []byte
	for {
		b, from, where, err := readMeshFrame(c)
		switch {
		case err != nil:
			return
		case from.IsValid():
			buf = s.mesh.deliver(buf, b, from)
		default:
			s.tellLocations(s.mesh.locate(where))
		}
	}
}

// tellLocations tells the guest where its peers are, if it has an agent; else it
// is told when that comes up.
func (s *shim) tellLocations(where []guest.Location) {
	agent, err := s.connected()
	if err != nil {
		return
	}
	if err := agent.Locate(where); err != nil {
		s.log.Warn("the guest does not hear where its peers are", "error", err)
	}
}

// meshNews opens the stream by which the guest hears of statements.
func (s *shim) meshNews() (net.Conn, error) {
	agent, err := s.connected()
	if err != nil {
		return nil, err
	}
	return agent.Mesh()
}
