package fogvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// maxUDP is the longest that UDP over IPv4 has.
const maxUDP = 1<<16 - 1 - 20 - 8

// dialUDP opens a UDP flow to a port of the guest.
func (n *network) dialUDP(port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("port %d: want 1 to 65535", port)
	}
	to := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(guestAddress.As4()), Port: uint16(port)}
	c, err := gonet.DialUDP(n.stack, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		return nil, fmt.Errorf("guest port %d/udp: %w", port, err)
	}
	return c, nil
}

// datagramIdle is how long a UDP flow into the guest may be silent: who opened it
// may be gone without a word.
const datagramIdle = 5 * time.Minute

// relayDatagrams moves datagrams between a stream, where each has its length in
// two bytes before it, and a UDP flow, until either ends. It closes both.
func relayDatagrams(stream, flow net.Conn) {
	var both sync.WaitGroup
	move := func(next func() error) {
		defer flow.Close()
		defer stream.Close()
		for next() == nil {
		}
	}
	in, out := make([]byte, 1<<16), make([]byte, 2+maxUDP)
	if flow.SetReadDeadline(time.Now().Add(datagramIdle)) != nil {
		flow.Close() // it has ended
	}
	both.Go(func() {
		move(func() error {
			if _, err := io.ReadFull(stream, in[:2]); err != nil {
				return err
			}
			n := binary.BigEndian.Uint16(in)
			if _, err := io.ReadFull(stream, in[:n]); err != nil {
				return err
			}
			if n > maxUDP {
				return errors.New("the datagram is too long")
			}
			if _, err := flow.Write(in[:n]); errors.Is(err, net.ErrClosed) {
				return err // any other is about this datagram: it is lost
			}
			return flow.SetReadDeadline(time.Now().Add(datagramIdle))
		})
	})
	both.Go(func() {
		move(func() error {
			n, err := flow.Read(out[2:])
			if err != nil {
				return err
			}
			binary.BigEndian.PutUint16(out, uint16(n))
			_, err = stream.Write(out[:2+n])
			return err
		})
	})
	both.Wait()
}

// DialUDP opens a UDP flow to a port of the guest, as a stream that carries each
// datagram with its length in two bytes, big endian, before it. Whether anybody
// listens there does not show. A flow in which nothing goes in for five minutes
// ends.
func (m *Manager) DialUDP(ctx context.Context, id string, port int) (net.Conn, error) {
	inst, err := m.live(id)
	if err != nil {
		return nil, err
	}
	return inst.open(ctx, shimRequest{Op: opDialUDP, Port: port})
}
