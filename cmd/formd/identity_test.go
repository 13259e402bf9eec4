package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt/stmt"
)

// Prefix and zone are fixed at a network's birth, and whoever joins has them from the
// ticket; who asks for others is told.
func TestSettingsAreFixed(t *testing.T) {
	now := time.Now()
	made := config.Config{Data: t.TempDir(), MeshPrefix: "100.64.0.0/10", MeshZone: "fog.example.org"}
	first, err := loadIdentity(made, now)
	if err != nil {
		t.Fatal(err)
	}
	want := stmt.Settings{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Zone: "fog.example.org"}
	if first.Settings != want || first.network() == stmt.NewNetworkID(first.Name, first.Root) {
		t.Errorf("%+v", first.membership)
	}
	first.InviteSeed = newSeed()
	first.Invite, err = stmt.NewInvite(first.RootKey, first.network(), first.InviteSeed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode}, Expires: now.Unix() + 60})
	if err != nil {
		t.Fatal(err)
	}
	ticket := first.ticket(nil).String()
	joined := config.Config{Data: t.TempDir(), Join: ticket}
	second, err := loadIdentity(joined, now)
	if err != nil || second.Settings != want || second.network() != first.network() {
		t.Fatalf("%+v, %v", second, err)
	}
	open := config.Config{Data: t.TempDir(), Network: "fog", MeshZone: "fog.example.org"}
	third, err := loadIdentity(open, now)
	if err != nil || third.network() != (stmt.Settings{Zone: "fog.example.org"}).NetworkID("fog", stmt.Key{}) {
		t.Errorf("an open network: %+v, %v", third, err)
	}
	for _, c := range []struct {
		name   string
		base   config.Config
		change func(*config.Config)
		says   string // "": it is in order
	}{
		{"again", made, func(*config.Config) {}, ""},
		{"unsaid", made, func(c *config.Config) { c.MeshPrefix, c.MeshZone = "", "" }, ""},
		{"another prefix", made, func(c *config.Config) { c.MeshPrefix = "10.128.0.0/9" }, `--mesh-prefix 10.128.0.0/9: network "private" says 100.64.0.0/10`},
		{"another zone", made, func(c *config.Config) { c.MeshZone = "dev.formation.cloud" }, `--mesh-zone dev.formation.cloud: network "private" says fog.example.org`},
		{"joined again", joined, func(c *config.Config) { c.MeshZone = "fog.example.org" }, ""},
		{"joined with another zone", joined, func(c *config.Config) { c.MeshZone = "a.b" }, "says fog.example.org"},
		{"joining as the ticket says", joined, func(c *config.Config) { c.Data, c.MeshPrefix = t.TempDir(), "100.64.0.0/10" }, ""},
		{"joining otherwise", joined, func(c *config.Config) { c.Data, c.MeshPrefix = t.TempDir(), "10.0.0.0/8" }, "--mesh-prefix 10.0.0.0/8: the ticket says 100.64.0.0/10"},
	} {
		cfg := c.base
		c.change(&cfg)
		id, err := loadIdentity(cfg, now)
		switch {
		case c.says == "" && (err != nil || id.network() != first.network()):
			t.Errorf("%s: %v", c.name, err)
		case c.says != "" && (api.ExitOf(err) != api.ExitUsage || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
}
