package p2p

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

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
