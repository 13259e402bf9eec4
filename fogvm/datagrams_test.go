package fogvm

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// TestDatagramsIntoGuest: whole datagrams go to a guest's port and back, and the
// flow ends with the stream, and with what is no datagram.
func TestDatagramsIntoGuest(t *testing.T) {
	n, s := guestStack(t, defaultLimits, nil)
	defer n.close()
	echo, err := gonet.DialUDP(s, &tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(guestAddress.As4()), Port: 53}, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := echo.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := echo.WriteTo(buf[:n], from); err != nil {
				return
			}
		}
	}()
	open := func() (net.Conn, chan struct{}) {
		flow, err := n.dialUDP(53)
		if err != nil {
			t.Fatal(err)
		}
		near, far := net.Pipe()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			relayDatagrams(far, flow)
		}()
		if err := near.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return near, ended
	}
	stream, ended := open()
	for _, text := range []string{"ping", "", strings.Repeat("x", 1400)} {
		if _, err := stream.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 2+len(text))
		if _, err := io.ReadFull(stream, got); err != nil || int(binary.BigEndian.Uint16(got)) != len(text) || string(got[2:]) != text {
			t.Fatalf("%q: %q, %v", text, got, err)
		}
	}
	stream.Close()
	<-ended

	stream, ended = open()
	// It may be cut off before the end.
	_, _ = stream.Write(append([]byte{255, 255}, make([]byte, 1<<16-1)...))
	<-ended
	stream.Close()
	for _, port := range []int{0, -1, 65536} {
		if c, err := n.dialUDP(port); err == nil {
			c.Close()
			t.Errorf("port %d", port)
		}
	}
}
