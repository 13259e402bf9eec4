//go:build linux

package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/wg/wgtest"
)

func prefixes(text string) (out []netip.Prefix) {
	for _, f := range strings.Fields(text) {
		out = append(out, netip.MustParsePrefix(f))
	}
	return out
}

func addrs(text string) (out []netip.Addr) {
	for _, f := range strings.Fields(text) {
		out = append(out, netip.MustParseAddr(f))
	}
	return out
}

func TestRoutes(t *testing.T) {
	const mesh, peers = "10.128.0.0/9 fd5b:995c:5fb7::/48", "10.128.1.1 10.138.0.7 10.200.0.1 fd5b:995c:5fb7::1"
	for _, tt := range []struct{ name, foreign, routes, inTheWay string }{
		{"nothing is in the way", "192.168.0.0/24 10.0.0.0/24 fd00::/64", mesh, ""},
		{"a cloud's subnet inside", "10.138.0.0/20", "10.128.1.1/32 10.200.0.1/32 fd5b:995c:5fb7::/48", "10.138.0.0/20"},
		{"all of 10/8 is somewhere else", "10.0.0.0/8", "fd5b:995c:5fb7::/48", "10.0.0.0/8"},
		{"this machine has a peer's address", "10.200.0.1/32", "10.128.1.1/32 10.138.0.7/32 fd5b:995c:5fb7::/48", "10.200.0.1/32"},
		{"the same prefix twice", "10.138.0.0/20 10.138.0.0/20 10.200.0.0/30", "10.128.1.1/32 fd5b:995c:5fb7::/48", "10.138.0.0/20 10.200.0.0/30"},
	} {
		routes, inTheWay := Routes(prefixes(mesh), addrs(peers), prefixes(tt.foreign))
		if !slices.Equal(routes, prefixes(tt.routes)) || !slices.Equal(inTheWay, prefixes(tt.inTheWay)) {
			t.Errorf("%s: routes %v, in the way %v", tt.name, routes, inTheWay)
		}
	}
}

// An interface becomes what is said, again and again, and nothing else is touched.
func TestSet(t *testing.T) {
	n := wgtest.NewNamespace(t, "link")
	n.Run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "far")
	n.Run("ip", "address", "add", "10.138.0.5/20", "dev", "lan")
	n.Run("ip", "link", "set", "lan", "up")
	n.Run("ip", "tuntap", "add", "dev", "form0", "mode", "tun")
	c := Config{Name: "form0", MTU: 1280, Addresses: addrs("10.128.9.9 fd5b:995c:5fb7::9"), Prefixes: prefixes("10.128.0.0/9 fd5b:995c:5fb7::/48"),
		Peers: addrs("10.128.1.1 10.138.0.7 fd5b:995c:5fb7::1")}
	look := func() string {
		var b strings.Builder
		for _, args := range [][]string{{"-4", "-o", "address", "show", "dev", "form0"}, {"-6", "-o", "address", "show", "dev", "form0", "scope", "global"},
			{"route", "show", "dev", "form0"}, {"-6", "route", "show", "dev", "form0", "proto", fmt.Sprint(protocol)}, {"route", "show", "dev", "lan"}} {
			for line := range strings.Lines(n.Run(append([]string{"ip"}, args...)...)) {
				f := strings.Fields(line)
				if f[0] != "" && strings.HasSuffix(f[0], ":") {
					f = f[3:4]
				}
				b.WriteString(f[0] + " ")
			}
			b.WriteString("| ")
		}
		return b.String()
	}
	set := func() (got []netip.Prefix) {
		t.Helper()
		if err := n.Do(func() (err error) { got, err = Set(c); return err }); err != nil {
			t.Fatal(err)
		}
		return got
	}
	for range 2 {
		if got := set(); !slices.Equal(got, prefixes("10.138.0.0/20 10.138.0.5/32")) {
			t.Errorf("in the way is %v", got)
		}
		if got, want := look(), "10.128.9.9/32 | fd5b:995c:5fb7::9/128 | 10.128.1.1 | fd5b:995c:5fb7::/48 | 10.138.0.0/20 | "; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	source := func(want string) {
		t.Helper()
		for range 2 { // the order in which they were added says nothing
			set()
			if got := n.Run("ip", "route", "get", "10.128.1.1"); !strings.Contains(got, " src "+want+" ") {
				t.Errorf("the source is %s, want %s", got, want)
			}
		}
	}
	c.Addresses = addrs("10.128.0.53")
	source("10.128.0.53")
	c.Addresses = addrs("10.128.9.9 10.128.0.53")
	source("10.128.9.9")
	n.Run("ip", "link", "del", "lan")
	n.Run("ip", "address", "add", "192.0.2.1/32", "dev", "form0")
	c.Addresses = addrs("10.128.9.8")
	if got := set(); len(got) != 0 {
		t.Errorf("in the way is %v", got)
	}
	n.Run("ip", "link", "add", "lan", "type", "veth", "peer", "name", "far")
	if got, want := look(), "10.128.9.8/32 | | 10.128.0.0/9 | fd5b:995c:5fb7::/48 | | "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if mtu := n.Run("ip", "-o", "link", "show", "form0"); !strings.Contains(mtu, "mtu 1280") || !strings.Contains(mtu, "UP") {
		t.Errorf("the interface: %s", mtu)
	}
	c.Name = "none"
	if err := n.Do(func() error { _, err := Set(c); return err }); err == nil || !strings.Contains(err.Error(), "interface none") {
		t.Errorf("of no interface: %v", err)
	}
}
