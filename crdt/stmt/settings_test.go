package stmt

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestSettings(t *testing.T) {
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 46)
	for _, c := range []struct {
		prefix, zone string
		ok           bool
	}{
		{"", "", true}, {"10.128.0.0/9", "dev.formation.cloud", true},
		{"10.0.0.0/8", "", true}, {"172.16.0.0/12", "", true}, {"100.64.0.0/10", "", true}, {"10.7.0.0/16", "", true},
		{"10.7.0.0/17", "", false}, {"0.0.0.0/0", "", false}, {"8.0.0.0/7", "", false}, {"11.0.0.0/8", "", false},
		{"192.168.0.0/16", "", false}, {"172.16.0.0/11", "", false}, {"198.18.0.0/15", "", false}, {"127.0.0.0/8", "", false},
		{"10.1.0.0/9", "", false}, {"fd00::/8", "", false}, {"::ffff:10.0.0.0/104", "", false},
		{"", "fog.example.org", true}, {"", "a.b", true}, {"", "x-1.home.arpa", true}, {"", long, true},
		{"", long + "c", false}, {"", "org", false}, {"", ".org", false}, {"", "fog.", false}, {"", "a..b", false}, {"", "Fog.example.org", false},
		{"", "fog_1.example.org", false}, {"", "-fog.org", false}, {"", "fog-.org", false}, {"", "10.1", false}, {"", "föhn.org", false},
		{"", strings.Repeat("a", 64) + ".org", false}, {"", "fog.local", false}, {"", "10.in-addr.arpa", false}, {"", "a\x00b.org", false},
	} {
		s := Settings{Zone: c.zone}
		if c.prefix != "" {
			s.Prefix4 = netip.MustParsePrefix(c.prefix)
		}
		if err := s.Check(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

// The longest name that somebody can have below the longest zone is a domain name.
func TestRoomForNames(t *testing.T) {
	const label, owner = 63, 62
	if n := len("_65535._tcp.63.") + label + len(".") + owner + len(".") + MaxZone; n > 253 {
		t.Errorf("%d bytes", n)
	}
}

// A network with other settings is another network, and its settings are those that
// count, said or not.
func TestNetworkIDHasSettings(t *testing.T) {
	usual := NewNetworkID("test", root)
	for _, s := range []Settings{{}, {Prefix4: DefaultPrefix4}, {Zone: DefaultZone}, Settings{}.Full()} {
		if s.NetworkID("test", root) != usual {
			t.Errorf("%+v is not as usual", s)
		}
	}
	seen := map[NetworkID]Settings{usual: {}}
	for _, s := range []Settings{
		{Zone: "fog.example.org"}, {Prefix4: netip.MustParsePrefix("10.128.0.0/10")}, {Prefix4: netip.MustParsePrefix("10.0.0.0/9")},
		{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Zone: "fog.example.org"}, {Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Zone: "og.example.org"},
	} {
		id := s.NetworkID("test", root)
		if old, ok := seen[id]; ok {
			t.Errorf("%+v and %+v are one network", s, old)
		}
		seen[id] = s
		if id == s.NetworkID("tes", root) || id == s.NetworkID("test", Key{}) {
			t.Errorf("with %+v name and root do not count", s)
		}
	}
}

// A ticket says the settings, and one with wrong ones is none.
func TestTicketHasSettings(t *testing.T) {
	s := Settings{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Zone: "fog.example.org"}
	invite, err := NewInvite(priv("root"), s.NetworkID("test", root), priv("invite").Seed(), InviteBody{Roles: []Role{RoleNode}, Expires: now.Unix() + 60})
	if err != nil {
		t.Fatal(err)
	}
	ticket := Ticket{Name: "test", Root: root, InviteSeed: priv("invite").Seed(), Invite: invite, Settings: s}
	got, err := ParseTicket(ticket.String())
	if err != nil || got.Settings != s || got.Network() != s.NetworkID("test", root) {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := got.Join(KeyOf(priv("n")), RoleNode, now); err != nil {
		t.Error(err)
	}
	for _, wrong := range []Settings{{}, {Prefix4: s.Prefix4}, {Prefix4: s.Prefix4, Zone: "org"}, {Prefix4: netip.MustParsePrefix("fd00::/8"), Zone: s.Zone}} {
		ticket.Settings = wrong
		if _, err := ParseTicket(ticket.String()); !errors.Is(err, ErrTicket) {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
}
