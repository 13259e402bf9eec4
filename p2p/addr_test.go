package p2p

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func TestInnerAddresses(t *testing.T) {
	inner := []netip.Prefix{netip.MustParsePrefix("10.128.0.0/9"), netip.MustParsePrefix("fd00:1::/48")}
	for text, want := range map[string]bool{
		"/ip4/10.129.0.1/tcp/1": true, "/ip6/fd00:1::5/udp/1/quic-v1": true, "/ip6/::ffff:10.129.0.1/tcp/1": true,
		"/ip4/10.1.0.1/tcp/1": false, "/ip6/fd00:2::5/tcp/1": false, "/dns4/example.org/tcp/1": false,
		"/ip4/10.129.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N/p2p-circuit": false,
	} {
		a := ma.StringCast(text)
		if got := inside(inner, a); got != want {
			t.Errorf("%s is inside: %v", text, got)
		}
		if got := len(outside(inner, []ma.Multiaddr{a})) == 0; got != want {
			t.Errorf("%s is left out: %v", text, got)
		}
		if inside(nil, a) {
			t.Errorf("%s is inside of nothing", text)
		}
	}
}

func TestWidestFirst(t *testing.T) {
	relay := "/ip4/8.8.4.4/tcp/1/p2p/12D3KooWGRUQeWcBBVGvdFFmoVBVBM6v2zfDxZFSa4WHQqRLuhK9/p2p-circuit"
	want := []string{
		"/dns4/example.com/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip6/2600::1/tcp/1", relay,
		"/ip4/10.0.0.1/tcp/1", "/ip4/192.168.1.1/tcp/1", "/ip6/fe80::1/tcp/1",
		"/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1", "/ip6/::1/tcp/1",
	}
	var in []ma.Multiaddr
	for _, s := range append(want, want[0], "/p2p-circuit") {
		in = append(in, ma.StringCast(s))
	}
	text := func(as []ma.Multiaddr) (out []string) {
		for _, a := range as {
			out = append(out, a.String())
		}
		return out
	}
	for range 10 {
		rand.Shuffle(len(in), func(i, j int) { in[i], in[j] = in[j], in[i] })
		if got := text(widestFirst(in)); !slices.Equal(got, want) {
			t.Fatalf("got %v", got)
		}
	}
	for i := range 200 { // a machine full of containers
		in = append(in, ma.StringCast(fmt.Sprintf("/ip4/172.17.%d.1/tcp/1", i)))
	}
	got := text(widestFirst(in))
	if len(got) != MaxAddrs || !slices.Equal(got[:4], want[:4]) {
		t.Fatalf("%d addresses: %v", len(got), got)
	}
}
