package carrier

import (
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// plainBind is a conn.Bind on one address of the machine, which wireguard-go's
// own cannot be confined to. It does without batches.
type plainBind struct {
	at netip.Addr

	mu  sync.Mutex
	udp *net.UDPConn
}

func (p *plainBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.at, port)))
	if err != nil {
		return nil, 0, err
	}
	p.udp = c
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, from, err := c.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, err
		}
		sizes[0], eps[0] = n, &conn.StdNetEndpoint{AddrPort: from}
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

func (p *plainBind) Send(bufs [][]byte, to conn.Endpoint) error {
	p.mu.Lock()
	c := p.udp
	p.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	at := to.(*conn.StdNetEndpoint).AddrPort
	for _, b := range bufs {
		if _, err := c.WriteToUDPAddrPort(b, at); err != nil {
			return err
		}
	}
	return nil
}

func (p *plainBind) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.udp == nil {
		return nil
	}
	err := p.udp.Close()
	p.udp = nil
	return err
}

func (p *plainBind) SetMark(uint32) error { return nil }
func (p *plainBind) BatchSize() int       { return 1 }

func (p *plainBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	a, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: a}, err
}
