package p2p

import (
	"net"
	"sync/atomic"
	"testing"
)

// counted is a UDP socket that counts what is read from it, and whether it is open.
type counted struct {
	net.PacketConn
	reads, open *atomic.Int64
}

func (c counted) Close() error {
	c.open.Add(-1)
	return c.PacketConn.Close()
}

func (c counted) ReadFrom(b []byte) (int, net.Addr, error) {
	n, a, err := c.PacketConn.ReadFrom(b)
	c.reads.Add(1)
	return n, a, err
}

// Whoever opens QUIC's sockets sees all that it receives, dialled and listening, and
// gets them closed when the node ends.
func TestSocketsAreHandedIn(t *testing.T) {
	var reads, open [2]atomic.Int64
	t.Cleanup(func() { // after the nodes' own
		for i := range open {
			if n := open[i].Load(); n != 0 {
				t.Errorf("node %d has ended and left %d sockets open", i, n)
			}
		}
	})
	var nodes [2]*Node
	for i := range nodes {
		nodes[i], _ = start(t, func(c *Config) {
			c.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"}
			c.ListenUDP = func(network string, addr *net.UDPAddr) (net.PacketConn, error) {
				u, err := net.ListenUDP(network, addr)
				open[i].Add(1)
				return counted{u, &reads[i], &open[i]}, err
			}
			if i == 1 {
				c.Bootstrap = []string{quicAddr(t, nodes[0])}
			}
		})
	}
	eventually(t, "the nodes meet", func() bool {
		return len(nodes[0].Peers()) == 1 && len(nodes[1].Peers()) == 1
	})
	for i := range reads {
		if reads[i].Load() == 0 {
			t.Errorf("node %d read nothing from the socket it was given", i)
		}
	}
}
