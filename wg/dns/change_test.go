package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// What a zone becomes does not depend on what it was.
func TestAnySetBecomesWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{Zone: "dev.formation.cloud", Reverse: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9")}}
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var names []Name
		for range rapid.IntRange(1, 6).Draw(t, "sets") {
			names = rapid.SliceOfNDistinct(rapid.Custom(drawName), 0, 8, func(n Name) string { return n.Name }).Draw(t, "names")
			if err := s.Set(names); err != nil {
				t.Fatal(err)
			}
		}
		fresh, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := fresh.Set(names); err != nil {
			t.Fatal(err)
		}
		if got, want := dump(s.zone.Load()), dump(fresh.zone.Load()); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("after the last of them, %v, the zone is\n%v\nwant\n%v", names, got, want)
		}
	})
}

func drawName(t *rapid.T) Name {
	n := Name{Name: strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "0"}), 1, 3).Draw(t, "labels"), ".")}
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(1, 3), 0, 2, rapid.ID[int]).Draw(t, "targets") {
		// Nobody else has a machine's own address.
		host := rapid.SampledFrom([]string{n.Name, "elsewhere", ""}).Draw(t, "host")
		n.Targets = append(n.Targets, Target{Host: host, Addr4: netip.AddrFrom4([4]byte{10, 128, byte(len(n.Name)*16 + strings.Count(n.Name, "a")*4 + strings.Count(n.Name, "b")), byte(i)})})
		if host == n.Name {
			n.Targets[len(n.Targets)-1].Addr4 = ownAddress(n.Name, i)
		}
	}
	if rapid.Bool().Draw(t, "ssh") {
		n.Services = []Service{{"_ssh._tcp", 22}}
	}
	return n
}

// ownAddress is one that no other name of drawName has.
func ownAddress(name string, i int) netip.Addr {
	n := 0
	for _, c := range name {
		n = n*4 + strings.IndexRune(".ab0", c)
	}
	return netip.AddrFrom4([4]byte{10, 129 + byte(n>>8), byte(n), byte(i)})
}

// dump is a zone as text by name.
func dump(z *zone) map[string]string {
	out := map[string]string{}
	for _, part := range z.names {
		for name, n := range part {
			out[name] = fmt.Sprint(n.own, n.below, n.a, n.aaaa, n.srv, n.extra)
		}
	}
	for _, part := range z.back {
		for name, rrs := range part {
			out[name] = fmt.Sprint(rrs)
		}
	}
	return out
}

// A change to one of ten thousand makes the records of one.
func TestOneOfTenThousand(t *testing.T) {
	s := newServer(t)
	names := make([]Name, 10_000)
	for i := range names {
		names[i] = Name{Name: fmt.Sprintf("app%d.owner", i), Targets: []Target{target(i % 250)}, Services: []Service{{"_ssh._tcp", 22}}}
	}
	if err := s.Set(names); err != nil {
		t.Fatal(err)
	}
	before := s.zone.Load()
	names[777].Targets = []Target{target(251)}
	if err := s.Set(names); err != nil {
		t.Fatal(err)
	}
	after, made := s.zone.Load(), []string(nil)
	copied := 0
	for i, part := range after.names {
		same := true
		for name, n := range part {
			if before.names[i][name] != n {
				made, same = append(made, name), false
			}
		}
		if !same {
			copied++
		}
	}
	for _, name := range made {
		// The name, its service, and the counts of what is below their parents.
		if !dns.IsSubDomain("app777.owner.dev.formation.cloud.", name) && name != "owner.dev.formation.cloud." {
			t.Errorf("%s was made anew", name)
		}
	}
	if len(made) == 0 || len(made) > 4 || copied > 4 {
		t.Errorf("made anew: %v, in %d parts", made, copied)
	}
	if got := ask(s, "app777.owner.dev.formation.cloud.", dns.TypeA); !strings.Contains(got, "10.128.1.251") {
		t.Error(got)
	}
}

// Who has a scope leaves it out, and takes nobody else's names for its own.
func TestScope(t *testing.T) {
	s := newServer(t, Name{Name: "hello.one", Targets: []Target{{Host: "0.hello.one", Addr4: netip.MustParseAddr("10.128.1.1")}}, Services: []Service{{"_ssh._tcp", 22}}},
		Name{Name: "0.hello.one", Targets: []Target{{Host: "0.hello.one", Addr4: netip.MustParseAddr("10.128.1.1")}}},
		Name{Name: "hello.two", Targets: []Target{{Addr4: netip.MustParseAddr("10.128.1.2")}}},
		Name{Name: "all", Targets: []Target{{Addr4: netip.MustParseAddr("10.128.1.3")}}},
		Name{Name: "all.two", Targets: []Target{{Addr4: netip.MustParseAddr("10.128.1.4")}}})
	for _, tt := range []struct {
		scope, name string
		kind        uint16
		want        string
	}{
		{"one", "hello", dns.TypeA, "NOERROR aa hello.dev.formation.cloud. 10.128.1.1"},
		{"one", "HELLO", dns.TypeA, "NOERROR aa hello.dev.formation.cloud. 10.128.1.1"},
		{"ONE", "hello", dns.TypeA, "NOERROR aa hello.dev.formation.cloud. 10.128.1.1"},
		{"two", "hello", dns.TypeA, "NOERROR aa hello.dev.formation.cloud. 10.128.1.2"},
		{"two", "hello.one", dns.TypeA, "NOERROR aa hello.one.dev.formation.cloud. 10.128.1.1"},
		{"one", "0.hello", dns.TypeA, "NOERROR aa 0.hello.dev.formation.cloud. 10.128.1.1"},
		{"one", "_ssh._tcp.hello", dns.TypeSRV, "NOERROR aa _ssh._tcp.hello.dev.formation.cloud. 0.hello.one.dev.formation.cloud."},
		{"two", "all", dns.TypeA, "NOERROR aa all.dev.formation.cloud. 10.128.1.3"},
		{"one", "hello", dns.TypeTXT, "NOERROR aa"},
		{"", "hello", dns.TypeA, "NXDOMAIN aa"},
		{"three", "hello", dns.TypeA, "NXDOMAIN aa"},
		{"one", "nobody", dns.TypeA, "NXDOMAIN aa"},
	} {
		m := s.answer(new(dns.Msg).SetQuestion(tt.name+".dev.formation.cloud.", tt.kind), tt.scope)
		got := dns.RcodeToString[m.Rcode] + " aa"
		for _, rr := range m.Answer {
			f := strings.Fields(rr.String())
			got += " " + f[0] + " " + f[len(f)-1]
		}
		if got != tt.want {
			t.Errorf("%s in the scope of %q: %s, want %s", tt.name, tt.scope, got, tt.want)
		}
	}
	for scope, want := range map[string]string{"": "0.hello.one.", "one": "0.hello.", "two": "0.hello.one."} {
		m := s.answer(new(dns.Msg).SetQuestion("1.1.128.10.in-addr.arpa.", dns.TypePTR), scope)
		if got := m.Answer[0].(*dns.PTR).Ptr; got != want+"dev.formation.cloud." {
			t.Errorf("in the scope of %q the address is %s", scope, got)
		}
	}
}

func BenchmarkSetOneOfTenThousand(b *testing.B) {
	s := newServer(b)
	names := make([]Name, 10_000)
	for i := range names {
		names[i] = Name{Name: fmt.Sprintf("app%d.owner", i), Targets: []Target{target(i % 250)}, Services: []Service{{"_ssh._tcp", 22}}}
	}
	for i := 0; b.Loop(); i++ {
		names[i%len(names)].Targets = []Target{target(i % 249)}
		if err := s.Set(names); err != nil {
			b.Fatal(err)
		}
	}
}
