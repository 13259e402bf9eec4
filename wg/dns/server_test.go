package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func newServer(t testing.TB, names ...Name) *Server {
	t.Helper()
	s, err := New(Config{Zone: "dev.formation.cloud", Reverse: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd5b:995c:5fb7::/48")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Set(names); err != nil {
		t.Fatal(err)
	}
	return s
}

func target(n int) Target {
	return Target{Host: fmt.Sprintf("%d.hello", n), Addr4: netip.AddrFrom4([4]byte{10, 128, 1, byte(n)}),
		Addr6: netip.MustParseAddr(fmt.Sprintf("fd5b:995c:5fb7::%x", n))}
}

func hello(healthy ...bool) []Name {
	n := Name{Name: "hello", Services: []Service{{"_ssh._tcp", 22}, {"_8080._tcp", 8080}}}
	var all []Name
	for i, ok := range healthy {
		slot := Name{Name: fmt.Sprintf("%d.hello", i)}
		if ok {
			slot.Targets = []Target{target(i)}
		}
		n.Targets = append(n.Targets, slot.Targets...)
		all = append(all, slot)
	}
	return append(all, n, Name{Name: "hello.owner", Targets: n.Targets})
}

// text is an answer in one line.
func text(m *dns.Msg) string {
	var b strings.Builder
	b.WriteString(dns.RcodeToString[m.Rcode])
	if m.Authoritative {
		b.WriteString(" aa")
	}
	for _, rr := range m.Answer {
		fmt.Fprintf(&b, " %s", strings.Join(strings.Fields(rr.String())[1:], " "))
	}
	for _, rr := range m.Ns {
		fmt.Fprintf(&b, " (%s)", dns.TypeToString[rr.Header().Rrtype])
	}
	for _, rr := range m.Extra {
		if rr.Header().Rrtype != dns.TypeOPT {
			fmt.Fprintf(&b, " + %s", strings.Fields(rr.String())[4])
		}
	}
	return b.String()
}

func ask(s *Server, name string, kind uint16) string {
	return text(s.answer(new(dns.Msg).SetQuestion(name, kind), ""))
}

func TestAnswers(t *testing.T) {
	s := newServer(t, hello(true, false)...)
	for _, tt := range []struct {
		name string
		kind uint16
		want string
	}{
		{"hello.dev.formation.cloud.", dns.TypeA, "NOERROR aa 5 IN A 10.128.1.0"},
		{"HELLO.Dev.Formation.Cloud.", dns.TypeA, "NOERROR aa 5 IN A 10.128.1.0"},
		{"hello.dev.formation.cloud.", dns.TypeAAAA, "NOERROR aa 5 IN AAAA fd5b:995c:5fb7::"},
		{"hello.owner.dev.formation.cloud.", dns.TypeA, "NOERROR aa 5 IN A 10.128.1.0"},
		{"0.hello.dev.formation.cloud.", dns.TypeA, "NOERROR aa 5 IN A 10.128.1.0"},
		{"1.hello.dev.formation.cloud.", dns.TypeA, "NOERROR aa (SOA)"},
		{"hello.dev.formation.cloud.", dns.TypeTXT, "NOERROR aa (SOA)"},
		{"hello.dev.formation.cloud.", dns.TypeANY, "NOERROR aa (SOA)"},
		{"owner.dev.formation.cloud.", dns.TypeA, "NOERROR aa (SOA)"},
		{"_tcp.hello.dev.formation.cloud.", dns.TypeA, "NOERROR aa (SOA)"},
		{"nobody.dev.formation.cloud.", dns.TypeA, "NXDOMAIN aa (SOA)"},
		{"xhello.dev.formation.cloud.", dns.TypeA, "NXDOMAIN aa (SOA)"},
		{"x.hello.dev.formation.cloud.", dns.TypeA, "NXDOMAIN aa (SOA)"},
		{"_ssh._tcp.hello.dev.formation.cloud.", dns.TypeSRV, "NOERROR aa 5 IN SRV 0 1 22 0.hello.dev.formation.cloud. + 10.128.1.0 + fd5b:995c:5fb7::"},
		{"dev.formation.cloud.", dns.TypeSOA, "NOERROR aa 5 IN SOA ns.dev.formation.cloud. nobody.invalid. 1 5 5 5 5"},
		{"dev.formation.cloud.", dns.TypeNS, "NOERROR aa 5 IN NS ns.dev.formation.cloud."},
		{"0.1.128.10.in-addr.arpa.", dns.TypePTR, "NOERROR aa 5 IN PTR 0.hello.dev.formation.cloud."},
		{"0.1.128.10.in-addr.arpa.", dns.TypeA, "NOERROR aa (SOA)"},
		{"1.1.128.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN aa (SOA)"},
		{"0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.b.f.5.c.5.9.9.b.5.d.f.ip6.arpa.", dns.TypePTR, "NOERROR aa 5 IN PTR 0.hello.dev.formation.cloud."},
		{"1.1.127.10.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{"1.128.10.in-addr.arpa.", dns.TypePTR, "REFUSED"},
		{"example.com.", dns.TypeA, "REFUSED"},
		{"formation.cloud.", dns.TypeA, "REFUSED"},
		{"xdev.formation.cloud.", dns.TypeA, "REFUSED"},
		{`x\.dev.formation.cloud.`, dns.TypeA, "REFUSED"},
		{".", dns.TypeNS, "REFUSED"},
	} {
		if got := ask(s, tt.name, tt.kind); got != tt.want {
			t.Errorf("%s %s:\n got %s\nwant %s", tt.name, dns.TypeToString[tt.kind], got, tt.want)
		}
	}
}

func TestOddQuestions(t *testing.T) {
	s := newServer(t, hello(true)...)
	question := new(dns.Msg).SetQuestion("hello.dev.formation.cloud.", dns.TypeA)
	for _, tt := range []struct {
		name   string
		change func(*dns.Msg)
		want   string
	}{
		{"none", func(m *dns.Msg) { m.Question = nil }, "FORMERR"},
		{"two", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, "FORMERR"},
		{"chaos", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, "REFUSED"},
		{"update", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, "NOTIMP"},
		{"a later EDNS", func(m *dns.Msg) { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(1) }, "BADSIG"}, // as the library calls BADVERS, of the same number
	} {
		m := question.Copy()
		tt.change(m)
		if got := text(s.answer(m, "")); !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// The dead are not named, and the others come first in turn.
func TestRotationAndHealth(t *testing.T) {
	s := newServer(t, hello(true, true, true)...)
	first := map[string]int{}
	for range 9 {
		m := s.answer(new(dns.Msg).SetQuestion("hello.dev.formation.cloud.", dns.TypeA), "")
		if len(m.Answer) != 3 {
			t.Fatal(text(m))
		}
		first[m.Answer[0].(*dns.A).A.String()]++
	}
	if len(first) != 3 || first["10.128.1.0"] != 3 {
		t.Errorf("first came %v", first)
	}
	if err := s.Set(hello(true, false, true)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := ask(s, "hello.dev.formation.cloud.", dns.TypeA); strings.Contains(got, "10.128.1.1") {
			t.Errorf("a dead replica is named: %s", got)
		}
	}
	if got := ask(s, "1.1.128.10.in-addr.arpa.", dns.TypePTR); got != "NXDOMAIN aa (SOA)" {
		t.Errorf("its address: %s", got)
	}
}

func TestNamesThatNoZoneHas(t *testing.T) {
	s := newServer(t)
	good := hello(true)
	err := s.Set(append([]Name{{Name: ""}, {Name: "a..b"}, {Name: "a."}, {Name: strings.Repeat("a", 64)}, {Name: "sp ace"}, {Name: `back\slash`},
		{Name: "web", Services: []Service{{"ssh", 22}}}, good[0], good[0]}, good[1:]...))
	const want = `dns: "" is no name; "a..b" is no name; "a." is no name; "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is no name; "sp ace" is no name; "back\\slash" is no name; "ssh" is no service; "0.hello" is given twice`
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if got := ask(s, "hello.dev.formation.cloud.", dns.TypeA); got != "NOERROR aa 5 IN A 10.128.1.0" {
		t.Errorf("the good name: %s", got)
	}
	for _, zone := range []string{"", ".", "a..b"} {
		if _, err := New(Config{Zone: zone}); err == nil {
			t.Errorf("%q is a zone", zone)
		}
	}
}

// listen runs s on loopback, and returns its port.
func listen(t testing.TB, s dns.Handler) int {
	t.Helper()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := udp.LocalAddr().(*net.UDPAddr).Port
	tcp, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.(*Server).Run(ctx, udp, tcp) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return port
}

// dig is the client.
func TestDig(t *testing.T) {
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("dig is not installed")
	}
	var many []Target
	for i := range 64 {
		many = append(many, target(i))
	}
	s := newServer(t, append(hello(true), Name{Name: "many", Targets: many})...)
	port := listen(t, s)
	dig := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "dig", append([]string{"@127.0.0.1", "-p", fmt.Sprint(port), "+time=10", "+tries=2"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("dig %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := dig("+short", "hello.dev.formation.cloud"); got != "10.128.1.0" {
		t.Errorf("dig says %q", got)
	}
	if got := dig("+short", "-x", "10.128.1.0"); got != "0.hello.dev.formation.cloud." {
		t.Errorf("dig -x says %q", got)
	}
	if got := dig("+tcp", "+short", "hello.dev.formation.cloud", "AAAA"); got != "fd5b:995c:5fb7::" {
		t.Errorf("dig +tcp says %q", got)
	}
	if got := dig("example.com"); !strings.Contains(got, "status: REFUSED") {
		t.Errorf("dig of another zone says %q", got)
	}
	if got := dig("+noedns", "+ignore", "many.dev.formation.cloud"); !strings.Contains(got, " tc ") && !strings.Contains(got, " tc;") {
		t.Errorf("an answer longer than 512 bytes is not cut: %q", got)
	}
	if got := dig("+noedns", "+short", "many.dev.formation.cloud"); strings.Count(got, "10.128.1.") != 64 {
		t.Errorf("over TCP: %q", got)
	}
}

func FuzzQuestion(f *testing.F) {
	s := newServer(f, hello(true, false)...)
	for _, q := range []struct {
		name string
		kind uint16
	}{{"hello.dev.formation.cloud.", dns.TypeA}, {"_ssh._tcp.hello.dev.formation.cloud.", dns.TypeSRV}, {"0.1.128.10.in-addr.arpa.", dns.TypePTR},
		{"0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.b.f.5.c.5.9.9.b.5.d.f.ip6.arpa.", dns.TypePTR}} {
		b, err := new(dns.Msg).SetQuestion(q.name, q.kind).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q dns.Msg
		if q.Unpack(b) != nil {
			return
		}
		m := s.answer(&q, "")
		m.Truncate(maxUDP)
		if _, err := m.Pack(); err != nil && len(q.Question) == 1 {
			t.Errorf("the answer to %v cannot be sent: %v", q.Question, err)
		}
	})
}
