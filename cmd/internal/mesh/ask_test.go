package mesh

import (
	"net"
	"testing"

	miekg "github.com/miekg/dns"

	"github.com/formthefog/formation/wg/dns"
)

// writer keeps the answer.
type writer struct {
	miekg.ResponseWriter
	m *miekg.Msg
}

func (w *writer) RemoteAddr() net.Addr        { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (w *writer) WriteMsg(m *miekg.Msg) error { w.m = m; return nil }

// ask is the IPv6 addresses of a name.
func ask(t *testing.T, s *dns.Server, name string) (out []string) {
	t.Helper()
	var w writer
	s.ServeDNS(&w, new(miekg.Msg).SetQuestion(name, miekg.TypeAAAA))
	for _, rr := range w.m.Answer {
		out = append(out, rr.(*miekg.AAAA).AAAA.String())
	}
	return out
}
