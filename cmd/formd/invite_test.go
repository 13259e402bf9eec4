package main

import (
	"context"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

// What an invite admits to is what was asked for, or nothing is given.
func TestInviteGivesNoMoreThanAskedFor(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	small := stmt.Quota{Instances: 2, Memory: 1 << 30}
	root := &identity{Key: newKey(t), RootKey: newKey(t)}
	root.Name, root.Root = privateName, stmt.KeyOf(root.RootKey)
	joined := func(expires time.Time, roles ...stmt.Role) *identity {
		inv, err := root.invite(nil, stmt.InviteBody{Roles: roles, Expires: expires.Unix(), Quota: small})
		if err != nil {
			t.Fatal(err)
		}
		ticket, err := stmt.ParseTicket(inv.Ticket)
		if err != nil {
			t.Fatal(err)
		}
		id := &identity{Key: newKey(t)}
		id.Name, id.Root, id.InviteSeed, id.Invite = ticket.Name, ticket.Root, ticket.InviteSeed, ticket.Invite
		return id
	}
	open := &identity{Key: newKey(t)}
	open.Name = "fog"
	both := []stmt.Role{stmt.RoleNode, stmt.RoleOwner}
	for name, tc := range map[string]struct {
		id      *identity
		ask     api.InviteRequest
		exit    int
		roles   []stmt.Role   // nil: no invite in the ticket
		expires time.Duration // from now; 0: never
	}{
		"root, no wish":     {root, api.InviteRequest{}, 0, both, 24 * time.Hour},
		"root, all wishes":  {root, api.InviteRequest{Roles: []string{"owner"}, Seconds: 60}, 0, []stmt.Role{stmt.RoleOwner}, time.Minute},
		"joined, no wish":   {joined(now.Add(48*time.Hour), both...), api.InviteRequest{}, 0, both, 48 * time.Hour},
		"joined, the same":  {joined(now.Add(time.Hour), both...), api.InviteRequest{Roles: []string{"owner", "node"}, Seconds: 3600}, 0, both, time.Hour},
		"joined, shorter":   {joined(now.Add(time.Hour), both...), api.InviteRequest{Seconds: 7200}, 0, both, time.Hour},
		"joined, too wide":  {joined(now.Add(time.Hour), both...), api.InviteRequest{Roles: []string{"owner"}}, api.ExitNotAllowed, nil, 0},
		"joined, too small": {joined(now.Add(time.Hour), stmt.RoleNode), api.InviteRequest{Roles: []string{"owner", "node"}}, api.ExitNotAllowed, nil, 0},
		"joined, too long":  {joined(now.Add(2*time.Hour), both...), api.InviteRequest{Seconds: 3600}, api.ExitNotAllowed, nil, 0},
		"root, a quota":     {root, api.InviteRequest{Quota: api.Quota(small)}, 0, both, 24 * time.Hour},
		"root, nodes only":  {root, api.InviteRequest{Roles: []string{"node"}, Quota: api.Quota(small)}, api.ExitUsage, nil, 0},
		"joined, larger":    {joined(now.Add(time.Hour), both...), api.InviteRequest{Quota: api.Quota{Instances: 3}}, 0, both, time.Hour},
		"joined, smaller":   {joined(now.Add(time.Hour), both...), api.InviteRequest{Quota: api.Quota{Instances: 1}}, api.ExitNotAllowed, nil, 0},
		"joined, otherwise": {joined(now.Add(time.Hour), both...), api.InviteRequest{Quota: api.Quota{CPUs: 9}}, api.ExitNotAllowed, nil, 0},
		"open, a quota":     {open, api.InviteRequest{Quota: api.Quota(small)}, api.ExitUsage, nil, 0},
		"joined, ended":     {joined(now, both...), api.InviteRequest{}, api.ExitNotAllowed, nil, 0},
		"no invite":         {&identity{Key: newKey(t), membership: membership{Name: privateName, Root: root.Root}}, api.InviteRequest{}, api.ExitNotAllowed, nil, 0},
		"open, no wish":     {open, api.InviteRequest{}, 0, nil, 0},
		"open, a role":      {open, api.InviteRequest{Roles: []string{"owner"}}, api.ExitUsage, nil, 0},
		"open, a time":      {open, api.InviteRequest{Seconds: 3600}, api.ExitUsage, nil, 0},
	} {
		o := &operator{id: tc.id, addrs: func() []string { return nil }, now: func() time.Time { return now }}
		inv, err := o.Invite(context.Background(), tc.ask)
		if api.ExitOf(err) != tc.exit {
			t.Errorf("%s: %+v, %v; want exit %d", name, inv, err, tc.exit)
		}
		if err != nil {
			continue
		}
		ticket, err := stmt.ParseTicket(inv.Ticket)
		if err != nil {
			t.Fatal(err)
		}
		var body stmt.InviteBody
		if len(ticket.Invite) > 0 {
			v, err := stmt.Verify(ticket.Invite, ticket.Network())
			if err == nil {
				err = stmt.Unmarshal(v.Body, &body)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var want time.Time
		if tc.expires > 0 {
			want = now.Add(tc.expires)
		}
		if !sameRoles(body.Roles, tc.roles) || !inv.Expires.Equal(want) {
			t.Errorf("%s: admits to %v until %v; want %v until %v", name, body.Roles, inv.Expires, tc.roles, want)
		}
	}
}
