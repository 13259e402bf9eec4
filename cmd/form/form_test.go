package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

func TestParseHost(t *testing.T) {
	for in, want := range map[string]host{
		"hello-server":                     {text: "hello-server", name: "hello-server", slot: -1},
		"bigdog@hello-server":              {text: "hello-server", user: "bigdog", name: "hello-server", slot: -1},
		"hello-server/1":                   {text: "hello-server/1", name: "hello-server", slot: 1},
		"a@b/0":                            {text: "b/0", user: "a", name: "b", slot: 0},
		"Web.dev.formation.cloud.":         {text: "Web.dev.formation.cloud.", name: "web.dev.formation.cloud", slot: -1},
		"u@10.128.0.54":                    {text: "10.128.0.54", user: "u", name: "10.128.0.54", slot: -1},
		"fd00::1":                          {text: "fd00::1", name: "fd00::1", slot: -1},
		"abcdefghijklmnopqrstuvwxyz234567": {text: "abcdefghijklmnopqrstuvwxyz234567", name: "abcdefghijklmnopqrstuvwxyz234567", slot: -1},
	} {
		if got, err := parseHost(in); err != nil || got != want {
			t.Errorf("parseHost(%q) = %+v, %v; want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "@x", "x@", "x/", "x/y", "/0", "-oProxyCommand=x", "a@-b", "-a@b", "x/-1", "x/99999999"} {
		if got, err := parseHost(in); exitOf(err) != api.ExitUsage {
			t.Errorf("parseHost(%q) = %+v, %v; want a usage error", in, got, err)
		}
	}
}

// A name of the mesh means something in the network's own zone.
func TestHostsInAZone(t *testing.T) {
	owner := stmt.KeyOf(testKey(1))
	for _, c := range []struct {
		name, zone string
		want       host
	}{
		{"web.dev.formation.cloud", names.Zone, host{name: "web", slot: -1}},
		{"0.web.fog.example.org", "fog.example.org", host{name: "web", slot: 0}},
		{"web.fog.example.org/1", "fog.example.org", host{name: "web", slot: 1}},
		{"web." + names.Label(owner) + ".fog.example.org.", "fog.example.org", host{name: "web", slot: -1, owner: owner}},
		{"web.dev.formation.cloud", "fog.example.org", host{name: "web.dev.formation.cloud", slot: -1}},
	} {
		h, err := parseHost(c.name)
		if err == nil {
			h, err = h.in(c.zone)
		}
		c.want.text = c.name
		if err != nil || h != c.want || !(host{name: c.name}).isDomain() {
			t.Errorf("%s in %s: %+v, %v; want %+v", c.name, c.zone, h, err, c.want)
		}
	}
	h, err := parseHost("0.web.fog.example.org/1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.in("fog.example.org"); exitOf(err) != api.ExitUsage {
		t.Errorf("%+v, %v; want a usage error", got, err)
	}
	for _, name := range []string{"web", "10.128.0.54", "fd00::1"} {
		if (host{name: name}).isDomain() {
			t.Errorf("%s may be a name of the mesh", name)
		}
	}
}

func exitOf(err error) int {
	_, _, code := (&app{running: true}).explain(err)
	return code
}

func TestMatches(t *testing.T) {
	a4, a6 := "10.128.0.54", "fd00:0:0::1"
	all := []api.Instance{
		{ID: "aaaaaa22222222222222222222222222", Name: "web"},
		{ID: "aaaaaa33333333333333333333333333", Name: "db", Replicas: []api.Replica{{}, {Address: &a4, Address6: &a6}}},
		{ID: "bbbbbb22222222222222222222222222", Name: "web"},
		{ID: "cccccc22222222222222222222222222", Name: "aaaaaa"},
	}
	for in, want := range map[string]string{
		"db": "1", "web": "0 2", "aaaaaa22222222222222222222222222": "0", "bbbbbb": "2", "bbbbb": "", "aaaaaa": "3",
		"10.128.0.54": "1", "fd00::1": "1", "10.128.0.55": "", "nothing": "",
	} {
		var got []string
		for _, m := range matches(all, in) {
			for n, i := range all {
				if i.ID == m.ID {
					got = append(got, fmt.Sprint(n))
				}
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("matches(%q) = %v, want %q", in, got, want)
		}
	}
}

func TestReplicas(t *testing.T) {
	r := func(slot int, phase, live string, ready bool) api.Replica {
		return api.Replica{Slot: slot, Phase: phase, Live: live, Ready: ready, Reason: fmt.Sprintf("%d-%s-%s", slot, phase, live)}
	}
	i := api.Instance{Name: "web", Status: api.StatusPending, Desired: api.Desired{Replicas: 4, Phase: "running"}, Replicas: []api.Replica{
		r(0, "launching", "alive", false), r(1, "running", "dead", true), r(2, "running", "alive", true), r(2, "draining", "alive", true), r(3, "fetching", "alive", false),
	}}
	got, err := replicas(i, host{slot: -1})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, r := range got {
		order = append(order, r.Reason)
	}
	if want := "2-running-alive 2-draining-alive 0-launching-alive 1-running-dead"; strings.Join(order, " ") != want {
		t.Errorf("order %v, want %s", order, want)
	}
	if got, err := replicas(i, host{slot: 1}); err != nil || len(got) != 1 || got[0].Slot != 1 {
		t.Errorf("slot 1: %v, %v", got, err)
	}
	for slot, want := range map[int]int{3: api.ExitFailed, 7: api.ExitNotFound} {
		if _, err := replicas(i, host{slot: slot}); exitOf(err) != want {
			t.Errorf("slot %d: %v, exit %d, want %d", slot, err, exitOf(err), want)
		}
	}
}

// The three words are a contract, byte for byte.
func TestStatusText(t *testing.T) {
	for _, c := range []struct{ status, reason, want string }{
		{api.StatusPending, "fetching", "PENDING"}, {api.StatusSuccess, "short", "SUCCESS"},
		{api.StatusFailure, "exec format error", "FAILURE { reason: exec format error }"}, {api.StatusFailure, "", "FAILURE { reason:  }"},
	} {
		if got := statusText(api.Instance{Status: c.status, Reason: c.reason}); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestExplain(t *testing.T) {
	a := &app{running: true}
	path := func(err error) error { return &os.PathError{Op: "open", Path: "f", Err: err} }
	for _, c := range []struct {
		err  error
		want int
		text string
	}{
		{cli.Errorf(5, "no"), 5, "no"},
		{fmt.Errorf("x: %w", api.Problemf(api.ExitNotFound, "gone")), 3, "gone"},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), 6, "timed out"},
		{fmt.Errorf("x: %w", context.Canceled), 1, "interrupted"},
		{formfile.ErrorList{{File: "F", Line: 1, Col: 2, Msg: "bad"}}, 2, "F:1:2: bad"},
		{&swarm.UnreachableError{Peers: []string{"/ip4/x"}, Err: errors.New("dial")}, 4, "peer /ip4/x does not answer: dial"},
		{&swarm.UnreachableError{Socket: "/nonexistent/s", Err: errors.New("dial")}, 4, "no formd answers on /nonexistent/s: there is no such socket"},
		{&swarm.KeyError{Err: cli.Errorf(3, "there is no key yet")}, 3, "there is no key yet"},
		{fmt.Errorf("pack: %w", store.ErrNotFound), 3, "pack: not found"},
		{fmt.Errorf("import: %w", store.ErrCorrupt), 1, "import: corrupt"},
		{path(os.ErrNotExist), 3, "open f: file does not exist"},
		{path(os.ErrPermission), 5, "open f: permission denied"},
		{fmt.Errorf("sign: %w", crdt.ErrInvalid), 2, "sign: crdt: invalid statement"},
		{fmt.Errorf("sign: %w", crdt.ErrQuota), 2, "sign: crdt: author is over its quota"},
		{fmt.Errorf("sign: %w", crdt.ErrNotFound), 3, "sign: " + crdt.ErrNotFound.Error()},
		{fmt.Errorf("sign: %w", stmt.ErrTooLarge), 2, "sign: stmt: statement too large"},
		{errors.New("boom"), 1, "boom"},
	} {
		text, hints, code := a.explain(c.err)
		if text != c.text || code != c.want {
			t.Errorf("%v: %q, exit %d; want %q, exit %d", c.err, text, code, c.text, c.want)
		}
		for _, h := range hints {
			if strings.TrimSpace(h) == "" {
				t.Errorf("%v: an empty hint", c.err)
			}
		}
	}
	before := &app{}
	if _, _, code := before.explain(errors.New("unknown flag: --x")); code != api.ExitUsage {
		t.Errorf("before a verb has begun: exit %d, want %d", code, api.ExitUsage)
	}
}

func TestSSHArgs(t *testing.T) {
	got := strings.Join(sshArgs(sshCall{
		self: "/opt/it's/form", global: []string{"--peer", "/ip4/192.0.2.1/tcp/1/p2p/Q", "--quiet"}, via: viaMesh, instance: "abc", slot: 1,
		user: "bigdog", alias: "abc-1.formation", known: "/home/100% me/known", key: "/k/id", command: []string{"id", "-u"},
		opts: sshOptions{options: []string{"ForwardAgent=yes"}, forwards: []string{"1:h:2"}, tty: 1},
	}), "\n")
	want := `-o
ProxyCommand='/opt/it'\''s/form' '--peer' '/ip4/192.0.2.1/tcp/1/p2p/Q' '--quiet' 'proxy' '--via' 'mesh' 'abc/1' %p
-o
UserKnownHostsFile="/home/100%% me/known"
-o
GlobalKnownHostsFile=/dev/null
-o
HostKeyAlias=abc-1.formation
-o
StrictHostKeyChecking=yes
-o
CheckHostIP=no
-o
UpdateHostKeys=no
-o
BatchMode=yes
-o
IdentitiesOnly=yes
-o
LogLevel=ERROR
-i
/k/id
-p
22
-l
bigdog
-o
ForwardAgent=yes
-L
1:h:2
-t
--
abc-1.formation
id
-u`
	if got != want {
		t.Errorf("ssh arguments:\n%s\nwant:\n%s", got, want)
	}
}

func TestParseForward(t *testing.T) {
	for in, want := range map[string][2]int{"8080": {-1, 8080}, "9000:80": {9000, 80}, "0:22": {0, 22}} {
		if l, p, err := parseForward(in); err != nil || l != want[0] || p != want[1] {
			t.Errorf("parseForward(%q) = %d, %d, %v; want %v", in, l, p, err, want)
		}
	}
	for _, in := range []string{"", "x", "0", "65536", "-1:80", "80:0", "1:2:3", "65536:80"} {
		if l, p, err := parseForward(in); exitOf(err) != api.ExitUsage {
			t.Errorf("parseForward(%q) = %d, %d, %v; want a usage error", in, l, p, err)
		}
	}
}

func TestSecretNames(t *testing.T) {
	for name, want := range map[string]bool{
		"id_rsa": true, ".env": true, ".env.production": true, "server.PEM": true, "tls.key": true, "hello.py": false,
		"id_rsa.pub": false, "environment": false, "keyboard.go": false, "kubeconfig": true,
	} {
		if got := secretFile(name); got != want {
			t.Errorf("secretFile(%q) = %v", name, got)
		}
	}
	for name, want := range map[string]bool{"DB_PASSWORD": true, "github_token": true, "PATH": false, "MODE": false} {
		if got := secretName(name); got != want {
			t.Errorf("secretName(%q) = %v", name, got)
		}
	}
}

// What diff and inspect show must not hold password hashes.
func TestHidden(t *testing.T) {
	p := &store.Root{Salt: []byte("salt"), Run: store.RunConfig{Users: []store.User{{Name: "a", PasswordHash: "$6$x"}, {Name: "b"}}}}
	h := hidden(p)
	if h.Salt != nil || h.Run.Users[0].PasswordHash != "[redacted]" || h.Run.Users[1].PasswordHash != "" {
		t.Errorf("hidden: %+v", h)
	}
	if p.Run.Users[0].PasswordHash != "$6$x" || p.Salt == nil {
		t.Error("hidden changed the pack itself")
	}
}

func TestDiffPacks(t *testing.T) {
	x := &store.Root{Name: "a", Run: store.RunConfig{VCPU: 1, Entrypoint: []string{"a b"}}}
	y := &store.Root{Name: "a", Run: store.RunConfig{VCPU: 2, Entrypoint: []string{"a", "b"}}}
	d := diffPacks(x, y)
	if got := fmt.Sprint(d.Fields); got != `[{vcpu 1 2} {entrypoint "a b" "a" "b"}]` {
		t.Errorf("fields %s", got)
	}
	if d := diffPacks(x, x); len(d.Fields)+len(d.Added)+len(d.Removed) > 0 {
		t.Errorf("a pack differs from itself: %+v", d)
	}
}
