package wg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"
)

func key(n byte) Key { return Key{n} }

// peer n has the addresses of the identities in of, or of n itself.
func peer(s Space, n int, of ...int) Peer {
	if of == nil {
		of = []int{n}
	}
	p := Peer{Key: key(byte(n)), Addresses: []netip.Addr{}}
	for _, o := range of {
		p.Addresses = append(p.Addresses, s.Address6(identity(o)), s.Candidate4(identity(o), 0))
	}
	return p
}

func at(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
}

// story is a mesh over a fake device, with a transcript of what it becomes.
type story struct {
	t     *testing.T
	mesh  *Mesh
	dev   *Fake
	space Space
	log   bytes.Buffer
}

func tell(t *testing.T, chapters func(*story), want string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &story{t: t, dev: &Fake{}, space: testSpace(t, "")}
		quiet := slog.New(slog.NewTextHandler(&bytes.Buffer{}, nil))
		var err error
		if s.mesh, err = New(Config{Device: s.dev, Space: s.space, Log: quiet}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.mesh.Run(ctx) }()
		chapters(s)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if got := strings.ReplaceAll(s.log.String(), "fd5b:995c:5fb7:", ""); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
}

func (s *story) set(peers ...Peer) {
	if err := s.mesh.Set(peers); err != nil {
		fmt.Fprintln(&s.log, err)
	}
	s.wait(0)
}

// wait lets time pass and writes down what the device is then.
func (s *story) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
	fmt.Fprintf(&s.log, "touched %v\n%s", s.dev.Touched(), s.dev)
	for _, p := range s.mesh.Problems() {
		fmt.Fprintln(&s.log, "problem:", p)
	}
}

func TestSet(t *testing.T) {
	tell(t, func(s *story) {
		one, two, three := peer(s.space, 1), peer(s.space, 2), peer(s.space, 3)
		two.Endpoint, two.Keepalive = at(1), 25*time.Second
		s.set(one, two)
		s.set(three, two, one) // the order alone changes nothing
		two.Endpoint = at(2)
		s.set(two, three)
	}, `
touched [AQAAAA AgAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:1 every 25s
touched [AwAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:1 every 25s
AwAAAA [10.185.217.139 e49e:851e:dcec:98a8:9c7]
touched [AQAAAA AgAAAA]
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:2 every 25s
AwAAAA [10.185.217.139 e49e:851e:dcec:98a8:9c7]
`)
}

// WireGuard would give the address to the last that asks.
func TestTwoWantOneAddress(t *testing.T) {
	tell(t, func(s *story) {
		s.set(peer(s.space, 1), peer(s.space, 2, 1))
		s.set(peer(s.space, 2, 1), peer(s.space, 1)) // neither is alive: the first wins
		s.dev.Shake(key(2), time.Now(), netip.AddrPort{})
		s.set(peer(s.space, 1), peer(s.space, 2, 1)) // 2 is talking
		s.wait(sessionLife)                          // and no longer is
	}, `
touched [AQAAAA AgAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
AgAAAA []
problem: address b20e:d10f:2056:e2f8:ec01 of peer AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
problem: address 10.179.83.245 of peer AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
touched [AQAAAA AgAAAA]
AQAAAA []
AgAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
problem: address b20e:d10f:2056:e2f8:ec01 of peer AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
problem: address 10.179.83.245 of peer AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
touched []
AQAAAA []
AgAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
problem: address b20e:d10f:2056:e2f8:ec01 of peer AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
problem: address 10.179.83.245 of peer AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
touched [AgAAAA AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
AgAAAA []
problem: address b20e:d10f:2056:e2f8:ec01 of peer AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
problem: address 10.179.83.245 of peer AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is held by AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
`)
}

func TestKeyIsReplacedOnceTheNewOneWorks(t *testing.T) {
	tell(t, func(s *story) {
		s.set(peer(s.space, 1))
		s.dev.Shake(key(1), time.Now(), netip.AddrPort{})
		s.set(peer(s.space, 9, 1))
		s.wait(3 * time.Second)
		s.dev.Shake(key(9), time.Now(), netip.AddrPort{})
		s.wait(settleEvery)
	}, `
touched [AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
touched [CQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
CQAAAA []
touched []
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
CQAAAA []
touched [AQAAAA CQAAAA]
CQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
`)
}

func TestKeyThatNeverWorksReplacesAllTheSame(t *testing.T) {
	tell(t, func(s *story) {
		s.set(peer(s.space, 1))
		s.set(peer(s.space, 8, 1)) // the old one was silent anyway
		s.dev.Shake(key(8), time.Now(), netip.AddrPort{})
		s.set(peer(s.space, 9, 1))
		s.wait(patience)
	}, `
touched [AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
touched [AQAAAA CAAAAA]
CAAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
touched [CQAAAA]
CAAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
CQAAAA []
touched [CAAAAA CQAAAA]
CQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
`)
}

func TestWhereAPeerIsItsPacketsSayBest(t *testing.T) {
	tell(t, func(s *story) {
		p := peer(s.space, 1)
		p.Endpoint = at(1)
		s.set(p)
		s.dev.Shake(p.Key, time.Now(), at(7))
		p.Endpoint = at(2)
		s.set(p)
		s.wait(sessionLife + staleEvery)
	}, `
touched [AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:1
touched []
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:7
touched [AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:2
`)
}

// What has one place whatever its packets say has it again, alive or not, with the
// next look at the device.
func TestWhatIsFixedIsPutBack(t *testing.T) {
	tell(t, func(s *story) {
		p, roams := peer(s.space, 1), peer(s.space, 2)
		p.Endpoint, p.Fixed, roams.Endpoint = at(1), true, at(1)
		s.set(p, roams)
		for range 4 {
			s.dev.Shake(p.Key, time.Now(), at(7))
			s.dev.Shake(roams.Key, time.Now(), at(7))
			s.wait(auditEvery / 4)
		}
	}, `
touched [AQAAAA AgAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:1
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:1
touched []
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:7
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:7
touched []
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:7
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:7
touched []
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:7
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:7
touched [AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01] at 192.0.2.1:1
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb] at 192.0.2.1:7
`)
}

func TestDeviceThatFailsIsTriedAgain(t *testing.T) {
	tell(t, func(s *story) {
		s.set(peer(s.space, 1))
		s.dev.Fail(errors.New("no such device"))
		s.set(peer(s.space, 2))
		s.dev.Fail(nil)
		s.wait(retryEvery)
	}, `
touched [AQAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
touched []
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
problem: cannot program the device: no such device
touched [AQAAAA AgAAAA]
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb]
`)
}

func TestWhatSomebodyElseChangesIsPutRight(t *testing.T) {
	tell(t, func(s *story) {
		s.set(peer(s.space, 1), peer(s.space, 2))
		if err := s.dev.Configure([]wgtypes.PeerConfig{{PublicKey: key(1), Remove: true}, {PublicKey: key(3)},
			{PublicKey: key(2), ReplaceAllowedIPs: true}}); err != nil {
			s.t.Fatal(err)
		}
		s.wait(auditEvery)
	}, `
touched [AQAAAA AgAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb]
touched [AQAAAA AwAAAA AgAAAA AwAAAA AQAAAA AgAAAA]
AQAAAA [10.179.83.245 b20e:d10f:2056:e2f8:ec01]
AgAAAA [10.183.224.133 89b5:33c1:3721:2c7a:4fbb]
`)
}

func TestPeersThatNoMeshHas(t *testing.T) {
	tell(t, func(s *story) {
		far, dns, slow := peer(s.space, 1), peer(s.space, 2), peer(s.space, 3)
		far.Addresses[0] = netip.MustParseAddr("192.168.0.1")
		dns.Addresses[0] = s.space.DNS4()
		slow.Keepalive = time.Millisecond
		many := peer(s.space, 4)
		many.Addresses = make([]netip.Addr, maxAddresses+1)
		s.set(Peer{}, far, dns, slow, many, peer(s.space, 5), peer(s.space, 5))
	}, `
wg: peer without a key
peer AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=: 192.168.0.1 is no address in :/48 or 10.128.0.0/9
peer AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=: 10.128.0.53 is no address in :/48 or 10.128.0.0/9
peer AwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=: keepalive 1ms
peer BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=: 17 addresses, the limit is 16
peer BQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA= is given twice
touched [BQAAAA]
BQAAAA [10.166.18.104 439f:ce52:d7cf:e550:5d86]
`)
}

// What a device becomes does not depend on what it was, and nobody is touched
// who stays as he is.
func TestAnySetBecomesWhatIsWanted(t *testing.T) {
	space := testSpace(t, "")
	rapid.Check(t, func(t *rapid.T) {
		dev, have := &Fake{}, map[Key]programmed{}
		for range rapid.IntRange(1, 6).Draw(t, "sets") {
			var want []Peer
			for _, n := range rapid.Permutation([]int{1, 2, 3, 4, 5, 6, 7, 8}).Draw(t, "peers")[:rapid.IntRange(0, 8).Draw(t, "n")] {
				p := peer(space, n, rapid.SliceOfN(rapid.IntRange(1, 4), 0, 2).Draw(t, "of")...)
				if rapid.Bool().Draw(t, "hinted") {
					p.Endpoint = at(uint16(rapid.IntRange(1, 3).Draw(t, "port")))
				}
				p.Keepalive = time.Duration(rapid.IntRange(0, 1).Draw(t, "keepalive")) * time.Second
				want = append(want, p)
			}
			s := diff(want, have, nil, time.Time{})
			if err := dev.Configure(s.changes); err != nil {
				t.Fatal(err)
			}
			before := have
			have = s.next
			dumb := map[Key][]netip.Addr{}
			taken := map[netip.Addr]bool{}
			for _, p := range want {
				dumb[p.Key] = nil
				for _, a := range p.Addresses {
					if !taken[a] {
						taken[a] = true
						dumb[p.Key] = append(dumb[p.Key], a)
					}
				}
			}
			got, err := dev.Peers()
			if err != nil || len(got) != len(dumb) {
				t.Fatalf("%d peers, want %d (%v)", len(got), len(dumb), err)
			}
			touched := dev.Touched()
			for _, p := range got {
				slices.SortFunc(dumb[p.Key], netip.Addr.Compare)
				i := slices.IndexFunc(want, func(w Peer) bool { return w.Key == p.Key })
				if i < 0 || !slices.Equal(p.Addresses, dumb[p.Key]) || p.Keepalive != want[i].Keepalive ||
					want[i].Endpoint.IsValid() && p.Endpoint != want[i].Endpoint {
					t.Fatalf("peer is %v, want %v", p, dumb[p.Key])
				}
				old, known := before[p.Key]
				same := known && slices.Equal(old.addresses, have[p.Key].addresses) && old.endpoint == want[i].Endpoint && old.keepalive == want[i].Keepalive
				if same && slices.Contains(touched, short(p.Key)) {
					t.Fatalf("peer %s was touched for nothing", short(p.Key))
				}
			}
		}
	})
}

// A change to one of ten thousand peers touches one.
func TestOneOfTenThousand(t *testing.T) {
	space, dev := testSpace(t, ""), &Fake{}
	want := make([]Peer, 10_000)
	for i := range want {
		want[i] = Peer{Key: Key{1, byte(i >> 8), byte(i)}, Addresses: []netip.Addr{space.Address6(identity(i))}}
	}
	s := diff(want, nil, nil, time.Time{})
	if err := dev.Configure(s.changes); err != nil {
		t.Fatal(err)
	}
	want[777].Endpoint = at(1)
	again := diff(want, s.next, nil, time.Time{})
	if len(again.changes) != 1 || again.changes[0].PublicKey != want[777].Key || !again.changes[0].UpdateOnly {
		t.Errorf("changes: %v", again.changes)
	}
}
