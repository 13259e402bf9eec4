package fogvm

import (
	"context"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// question is a DNS query for the A record of a name of one label.
func question(id uint16, label string) []byte {
	q := []byte{byte(id >> 8), byte(id), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, byte(len(label))}
	return append(append(q, label...), 4, 't', 'e', 's', 't', 0, 0, 1, 0, 1)
}

// TestQuestionsAreBounded: a guest that asks more than the host's resolver
// answers costs no more than some questions, and closing does not wait for them.
func TestQuestionsAreBounded(t *testing.T) {
	n, s := guestStack(t, forwardLimits{tcp: 1, udp: 1, udpIdle: time.Second}, nil)
	var asked atomic.Int32
	n.names.host = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		asked.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	gateway := tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4([4]byte{192, 168, 127, 1}), Port: 53}
	c, err := gonet.DialUDP(s, nil, &gateway, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before := runtime.NumGoroutine()
	for i := range uint16(3000) {
		if _, err := c.Write(question(i, "q"+string(rune('a'+i%26))+string(rune('a'+i/26%26))+string(rune('a'+i/676)))); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	eventually(t, 10*time.Second, "as many questions as may be", func() bool { return len(n.names.slots) == maxQuestions && asked.Load() > 0 })
	// Each is a few goroutines in Go's resolver; those of the refused go soon.
	eventually(t, 10*time.Second, "only the goroutines of those", func() bool { return runtime.NumGoroutine()-before <= 8*maxQuestions })
	start := time.Now()
	n.close()
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("closing took %s", took)
	}
}
