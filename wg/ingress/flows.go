package ingress

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// MaxDatagram is the longest datagram that a stream carries.
const MaxDatagram = 1<<16 - 1

// WriteDatagram writes a datagram to a stream: its length in two bytes, big
// endian, and itself. A longer one than MaxDatagram is an error.
func WriteDatagram(w io.Writer, p []byte) error {
	if len(p) > MaxDatagram {
		return errors.New("ingress: the datagram is too long")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(p)), uint16(len(p))), p...))
	return err
}

// ReadDatagram reads what WriteDatagram wrote into buf, which has room for
// MaxDatagram bytes. At the end of the stream, between datagrams, it is io.EOF.
func ReadDatagram(r io.Reader, buf []byte) (int, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return n, nil
}

// flowQueue is how many datagrams of a client wait for its replica; further ones
// are lost.
const flowQueue = 64

// flows are the clients of a UDP port, each with a stream to a replica.
type flows struct {
	*Ingress
	pc    net.PacketConn
	port  Port
	guard *guard

	mu sync.Mutex
	of map[netip.AddrPort]*flow
}

type flow struct {
	queue chan []byte
	last  atomic.Int64 // when a datagram passed, unix nanoseconds
}

func (g *Ingress) newFlows(pc net.PacketConn, p Port) *flows {
	return &flows{Ingress: g, pc: pc, port: p, guard: newGuard(g.cfg.Limits.Flows, g.cfg.Limits.FlowsOfOne), of: map[netip.AddrPort]*flow{}}
}

// serve reads datagrams until the socket is closed or ctx ends.
func (f *flows) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = f.pc.Close() })
	defer stop()
	buf := make([]byte, MaxDatagram)
	for {
		n, from, err := f.pc.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // about a datagram that was sent
		}
		udp, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		fl := f.flow(ctx, udp.AddrPort(), &running)
		if fl == nil {
			continue
		}
		fl.last.Store(time.Now().UnixNano())
		select {
		case fl.queue <- append([]byte(nil), buf[:n]...):
		default: // lost
		}
	}
}

// flow finds or begins a client's; nil: it may have none.
func (f *flows) flow(ctx context.Context, client netip.AddrPort, running *sync.WaitGroup) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.of[client]; fl != nil {
		return fl
	}
	who := clientOf(net.UDPAddrFromAddrPort(client))
	switch f.guard.enter(who) {
	case overAll:
		f.stats.refuse(refusedFlows)
		return nil
	case overOne:
		f.stats.refuse(refusedFlowsOfOne)
		return nil
	}
	fl := &flow{queue: make(chan []byte, flowQueue)}
	f.of[client] = fl
	f.stats.opened(kindUDP, 1)
	running.Go(func() {
		f.carry(ctx, client, fl)
		f.mu.Lock()
		delete(f.of, client)
		f.mu.Unlock()
		f.guard.leave(who)
		f.stats.opened(kindUDP, -1)
	})
	return fl
}

// carry moves a client's datagrams both ways until it is idle or its replica gone.
func (f *flows) carry(ctx context.Context, client netip.AddrPort, fl *flow) {
	s := f.Ingress.port(f.port)
	if s == nil {
		return
	}
	c, release, err := s.connect(ctx)
	if err != nil {
		if ctx.Err() == nil {
			f.stats.fail(kindUDP)
		}
		f.log.Debug("datagrams lost", "port", f.port.Number, "err", err)
		return
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var answers sync.WaitGroup
	defer answers.Wait()
	defer cancel()
	answers.Go(func() {
		defer cancel()
		f.answer(c, client, fl)
	})
	idle := f.cfg.Limits.FlowIdle
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-fl.queue:
			if c.SetWriteDeadline(time.Now().Add(f.cfg.Limits.Stall)) != nil || WriteDatagram(c, p) != nil {
				return
			}
		case <-timer.C:
			left := time.Until(time.Unix(0, fl.last.Load()).Add(idle))
			if left <= 0 {
				return
			}
			timer.Reset(left)
		}
	}
}

// answer sends a replica's datagrams to the client.
func (f *flows) answer(c net.Conn, client netip.AddrPort, fl *flow) {
	r, buf, to := bufio.NewReader(c), make([]byte, MaxDatagram), net.UDPAddrFromAddrPort(client)
	for {
		n, err := ReadDatagram(r, buf)
		if err != nil {
			return
		}
		fl.last.Store(time.Now().UnixNano())
		if _, err := f.pc.WriteTo(buf[:n], to); errors.Is(err, net.ErrClosed) {
			return
		}
	}
}
