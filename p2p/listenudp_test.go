package p2p

import (
	"net"
	"sync/atomic"
	"testing"
)

// counted is a UDP socket that counts what is read from it.
type counted struct {
	net.PacketConn
	reads *atomic.Int64
}

func (c counted) ReadFrom(b []byte) (int, net.Addr, error) {
	n, a, err := c.PacketConn.ReadFrom(b)
	c.reads.Add(1)
	return n, a, err
}

// Whoever opens QUIC's sockets sees all that it receives, dialled and listening.
func TestSocketsAreHandedIn(t *testing.T) {
	var reads [2]atomic.Int64
	var nodes [2]*Node
	for i := range nodes {
		nodes[i], _ = start(t, func(c *Config) {
			c.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"}
			c.ListenUDP = func(network string, addr *net.UDPAddr) (net.PacketConn, error) {
				u, err := net.ListenUDP(network, addr)
				return counted{u, &reads[i]}, err
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
