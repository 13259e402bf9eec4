package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
)

// Only what was said is asked for: a node that can hand on one invite alone must
// not take form's defaults for wishes.
func TestInviteAsksForWhatWasSaid(t *testing.T) {
	h := newHome(t)
	end := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		args string
		want api.InviteRequest
		give api.Invite
		says string
	}{
		{"", api.InviteRequest{}, api.Invite{Ticket: "form1x", Expires: end}, "can join until 2030-01-02T03:04:05Z"},
		{"--role owner --ttl 1h", api.InviteRequest{Roles: []string{"owner"}, Seconds: 3600}, api.Invite{Ticket: "form1x", Expires: end}, "until"},
		{"--role owner --max-instances 3 --max-memory 8G", api.InviteRequest{Roles: []string{"owner"}, Quota: api.Quota{Instances: 3, Memory: 8 << 30}}, api.Invite{Ticket: "form1x", Expires: end}, "until"},
		{"--ttl 24h", api.InviteRequest{Seconds: 86400}, api.Invite{Ticket: "form1x"}, "whenever they like: the network is open"},
	} {
		var got api.InviteRequest
		h.daemon.invite = func(r api.InviteRequest) (api.Invite, error) {
			got = r
			return tc.give, nil
		}
		code, out, talk := h.form(append([]string{"net", "invite"}, strings.Fields(tc.args)...)...)
		if code != api.ExitOK || out != "form1x\n" || !strings.Contains(talk, tc.says) || got.Seconds != tc.want.Seconds || got.Quota != tc.want.Quota || !slices.Equal(got.Roles, tc.want.Roles) {
			t.Errorf("%q: exit %d, %q, %q; asked for %+v", tc.args, code, out, talk, got)
		}
	}
	h.daemon.invite = func(api.InviteRequest) (api.Invite, error) {
		return api.Invite{}, api.Problemf(api.ExitNotAllowed, "wider").WithHint("ask the root")
	}
	if code, out, talk := h.form("net", "invite", "--ttl", "1h"); code != api.ExitNotAllowed || out != "" || !strings.Contains(talk, "hint: ask the root") {
		t.Errorf("refused: exit %d, %q, %q", code, out, talk)
	}
	for _, args := range []string{"--ttl 1s", "--max-instances -1", "--max-memory 8", "--max-disk 0G", "--max-disk 99999999T", "--max-memory G"} {
		if code, _, _ := h.form(append([]string{"net", "invite"}, strings.Fields(args)...)...); code != api.ExitUsage {
			t.Errorf("%s: exit %d", args, code)
		}
	}
}
