package fogvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// forwardLimits bound what a guest can make its host keep for the connections
// it opens: sockets, goroutines and buffers. What goes beyond is refused (TCP)
// or dropped (UDP) until something else ends.
type forwardLimits struct {
	tcp, udp int           // at once
	udpIdle  time.Duration // after which a UDP flow without datagrams ends
}

var defaultLimits = forwardLimits{tcp: 512, udp: 1024, udpIdle: time.Minute}

// forwarder carries the guest's outgoing connections: it opens each again from
// the host, where that may be reached. Safe for several goroutines.
type forwarder struct {
	limits  forwardLimits
	allowed []netip.Prefix // beyond the public internet
	log     *slog.Logger
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	host    func() ([]netip.Prefix, error)
	ctx     context.Context // ends everything
	end     context.CancelFunc

	tcpSlots, udpSlots chan struct{} // one is taken for each connection's life

	told atomic.Int64 // when a refusal was last logged, unix nanoseconds
}

func newForwarder(limits forwardLimits, allowed []netip.Prefix, log *slog.Logger) *forwarder {
	ctx, cancel := context.WithCancel(context.Background())
	return &forwarder{limits: limits, allowed: allowed, log: log, dial: (&net.Dialer{}).DialContext, host: hostNetworks, ctx: ctx, end: cancel,
		tcpSlots: make(chan struct{}, limits.tcp), udpSlots: make(chan struct{}, limits.udp)}
}

// attach makes f the handler of every packet in s that has no endpoint yet.
func (f *forwarder) attach(s *stack.Stack) {
	const handshakes = 16 // under way at once; further SYNs are repeated by the guest
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, handshakes, f.openTCP).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, f.openUDP).HandlePacket)
}

// close ends every connection and waits for that. None opens afterwards.
func (f *forwarder) close() {
	f.end()
	for _, slots := range []chan struct{}{f.tcpSlots, f.udpSlots} {
		for range cap(slots) {
			slots <- struct{}{}
		}
	}
}

func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// errNotAllowed: the guest named an address that it may not reach.
var errNotAllowed = errors.New("not allowed")

// open opens what a guest asks for, again from the host.
func (f *forwarder) open(ctx context.Context, network string, id stack.TransportEndpointID) (net.Conn, error) {
	addr, ok := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	if !ok {
		return nil, fmt.Errorf("address %v: %w", id.LocalAddress, errNotAllowed)
	}
	to := netip.AddrPortFrom(addr, id.LocalPort)
	if err := f.allow(ctx, to); err != nil {
		f.tell(network, to, err)
		return nil, err
	}
	return f.dial(ctx, network, to.String())
}

// allow judges an address, anew for each connection: this machine's may change.
func (f *forwarder) allow(ctx context.Context, to netip.AddrPort) error {
	host, err := f.host()
	if err != nil {
		return err
	}
	if !mayReach(to.Addr(), f.allowed, host) {
		return errNotAllowed
	}
	if within(f.allowed, to.Addr()) {
		return nil
	}
	// A route may make an address this machine's that no interface has. Opening
	// this sends nothing.
	route, err := f.dial(ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer route.Close()
	if from, err := netip.ParseAddrPort(route.LocalAddr().String()); err != nil || from.Addr().Unmap() == to.Addr() {
		return errNotAllowed
	}
	return nil
}

// refusalPause is between two log lines of what a guest may not.
const refusalPause = int64(10 * time.Second)

// tell logs some of the refusals: for who wonders why a guest gets no answer.
func (f *forwarder) tell(network string, to netip.AddrPort, err error) {
	last, now := f.told.Load(), time.Now().UnixNano()
	if !errors.Is(err, errNotAllowed) || now-last < refusalPause || !f.told.CompareAndSwap(last, now) {
		return
	}
	f.log.Info("the guest may not reach this", "network", network, "to", to.String())
}

// openTCP has a goroutine of its own.
func (f *forwarder) openTCP(r *tcp.ForwarderRequest) {
	if !take(f.tcpSlots) {
		r.Complete(true)
		return
	}
	defer func() { <-f.tcpSlots }()
	ctx, cancel := context.WithTimeout(f.ctx, time.Minute)
	outside, err := f.open(ctx, "tcp", r.ID())
	cancel()
	if err != nil {
		r.Complete(true) // what the guest would hear from its own kernel
		return
	}
	var queue waiter.Queue
	ep, refused := r.CreateEndpoint(&queue)
	r.Complete(false)
	if refused != nil {
		outside.Close()
		return
	}
	inside := gonet.NewTCPConn(&queue, ep)
	stop := context.AfterFunc(f.ctx, func() {
		ep.Abort()
		outside.Close()
	})
	defer stop()
	relay(inside, outside)
}

// openUDP is called by the goroutine that reads the guest's frames.
func (f *forwarder) openUDP(r *udp.ForwarderRequest) {
	if !take(f.udpSlots) {
		return
	}
	var queue waiter.Queue
	ep, refused := r.CreateEndpoint(&queue)
	if refused != nil {
		<-f.udpSlots
		return
	}
	id := r.ID()
	go func() {
		defer func() { <-f.udpSlots }()
		defer ep.Close()
		outside, err := f.open(f.ctx, "udp", id)
		if err != nil {
			return // as a network that drops it
		}
		f.relayUDP(gonet.NewUDPConn(&queue, ep), outside)
	}()
}

// relayUDP moves datagrams both ways until none has passed for udpIdle.
func (f *forwarder) relayUDP(inside, outside net.Conn) {
	closeBoth := func() {
		inside.Close()
		outside.Close()
	}
	stop := context.AfterFunc(f.ctx, closeBoth)
	defer stop()
	var last atomic.Int64 // unix nanoseconds
	last.Store(time.Now().UnixNano())
	move := func(to, from net.Conn) {
		defer closeBoth()
		buf := make([]byte, 64<<10)
		for {
			ends := time.Unix(0, last.Load()).Add(f.limits.udpIdle)
			if err := from.SetReadDeadline(ends); err != nil {
				return
			}
			n, err := from.Read(buf)
			switch {
			case err == nil:
				last.Store(time.Now().UnixNano())
				// As on any network, a datagram may be lost.
				_, _ = to.Write(buf[:n])
			case errors.Is(err, syscall.ECONNREFUSED): // about an earlier one
			case isTimeout(err) && time.Now().Before(time.Unix(0, last.Load()).Add(f.limits.udpIdle)):
				// The other direction is not idle.
			default:
				return
			}
		}
	}
	var both sync.WaitGroup
	both.Go(func() { move(inside, outside) })
	both.Go(func() { move(outside, inside) })
	both.Wait()
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
