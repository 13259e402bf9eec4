package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/p2p"
)

// run is one command line in this process.
func command(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = Main(args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommandLine(t *testing.T) {
	good, bad := filepath.Join(t.TempDir(), "good.toml"), filepath.Join(t.TempDir(), "bad.toml")
	refused, none := filepath.Join(t.TempDir(), "refused.toml"), filepath.Join(t.TempDir(), "none")
	for path, text := range map[string]string{
		good: "region = \"x\"\n", bad: "colour = 1\n", refused: "vm-net = \"bridge\"\nbootstrap = [\"/ip4/192.0.2.1/tcp/1\"]\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args           []string
		code           int
		stdout, stderr string // contained
	}{
		{[]string{"version"}, api.ExitOK, "formd ", ""},
		{[]string{"version", "--json"}, api.ExitOK, `"version":"`, ""},
		{[]string{"config", "check", good}, api.ExitOK, good + ": ok", ""},
		{[]string{"config", "check", bad}, api.ExitUsage, "", bad + ":1:1: unknown key"},
		{[]string{"config", "check", good + "x"}, api.ExitNotFound, "", "does not exist"},
		{[]string{"run", "--config", good + "x"}, api.ExitNotFound, "", "does not exist"},
		{[]string{"config", "check", refused}, api.ExitUsage, "", "vm-net: "},
		{[]string{"config", "check", refused}, api.ExitUsage, "", "bootstrap: "},
		{[]string{"run", "--config", refused}, api.ExitUsage, "", "vm-net: "},
		{[]string{"run", "--data", none, "--listen", "/ip4/127.0.0.1"}, api.ExitUsage, "", "listen: "},
		{[]string{"run", "--data", none, "--join", "form1nonsense"}, api.ExitUsage, "", "join: "},
		{[]string{"run", "--no-such-flag"}, api.ExitUsage, "", "unknown flag"},
		{[]string{"run", "extra"}, api.ExitUsage, "", "unexpected argument"},
		{[]string{"run", "--config", bad}, api.ExitUsage, "", "unknown key"},
		{[]string{"run", "--accel", "xen"}, api.ExitUsage, "", "accel"},
		{[]string{"run", "--memory", "lots"}, api.ExitUsage, "", "memory"},
		{[]string{"run", "--data", t.TempDir(), "--join", "form1nonsense"}, api.ExitUsage, "", "hint: "},
		{[]string{"run", "--data", t.TempDir(), "--vm-net", "bridge"}, api.ExitUsage, "", "not available"},
		{[]string{"run", "--data", t.TempDir(), "--mesh", "tap"}, api.ExitUsage, "", "mesh"},
		{[]string{"frobnicate"}, api.ExitUsage, "", "frobnicate"},
		{[]string{"rnu"}, api.ExitUsage, "", "hint: did you mean: formd run"},
		{[]string{"config"}, api.ExitUsage, "", "formd config needs a subcommand: check"},
		{[]string{"config", "chek", good}, api.ExitUsage, "", "hint: did you mean: formd config check"},
		{[]string{"help", "nosuch"}, api.ExitUsage, "", `unknown command "nosuch" for "formd"`},
		{[]string{"completion", "nosuch"}, api.ExitUsage, "", `unknown command "nosuch" for "formd completion"`},
		{[]string{"help", "run"}, api.ExitOK, "formd run", ""},
		{[]string{"completion", "bash"}, api.ExitOK, "formd", ""},
	} {
		code, stdout, stderr := command(tc.args...)
		if code != tc.code || !strings.Contains(stdout, tc.stdout) || !strings.Contains(stderr, tc.stderr) || (tc.stdout == "" && stdout != "") {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", tc.args, code, stdout, stderr)
		}
		if code != api.ExitOK && strings.Count(stderr, "\nhint: ") != 1 {
			t.Errorf("%q: no hint: %q", tc.args, stderr)
		}
	}
	if _, err := os.Stat(none); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused configuration has made the data directory: %v", err)
	}
}

// Every error says what to do next.
func TestHint(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{api.Problemf(api.ExitFailed, "x").WithHint("its own"), "its own"},
		{fmt.Errorf("network: %w", &p2p.ListenError{Addr: "/ip4/x", Err: syscall.EADDRINUSE}), "--listen"},
		{fmt.Errorf("--web: %w", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}), "a free port"},
		{&os.PathError{Op: "open", Path: "f", Err: os.ErrPermission}, "owner and mode"},
		{api.Problemf(api.ExitUsage, "x"), "--help"},
		{api.Problemf(api.ExitNotFound, "x"), "check the path"},
		{api.Problemf(api.ExitNotAllowed, "x"), "root key"},
		{errors.New("x"), "--log-level debug"},
	} {
		if got := hint(tc.err); !strings.Contains(got, tc.want) {
			t.Errorf("%v: hint %q, want %q in it", tc.err, got, tc.want)
		}
	}
}

// A node's directory, socket and ports belong to it alone, and its network is
// chosen once.
func TestWhatIsTakenIsRefused(t *testing.T) {
	p := newProc(t).start()
	other := []string{"run", "--data", t.TempDir(), "--api", "unix://" + filepath.Join(p.dir, "other.sock")}
	other = append(other, quietArgs...)
	with := func(extra ...string) []string { return append(slices.Clone(other), extra...) }
	_, tcp, _ := strings.Cut(p.addrs[slices.IndexFunc(p.addrs, func(a string) bool { return strings.Contains(a, "/tcp/") })], "/tcp/")
	tcp, _, _ = strings.Cut(tcp, "/")
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer web.Close()
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"data":    {with("--data", filepath.Join(p.dir, "data")), api.ExitFailed, "another formd uses"},
		"socket":  {with("--api", "unix://"+p.socket()), api.ExitFailed, "another formd answers"},
		"port":    {with("--listen", "/ip4/127.0.0.1/tcp/"+tcp), api.ExitFailed, "listen on /ip4/127.0.0.1/tcp/" + tcp},
		"web":     {with("--web", web.Addr().String()), api.ExitFailed, "--web"},
		"metrics": {with("--metrics", web.Addr().String()), api.ExitFailed, "--metrics"},
	} {
		if code, _, stderr := command(tc.args...); code != tc.code || !strings.Contains(stderr, tc.want) {
			t.Errorf("%s: exit %d, %q", name, code, stderr)
		}
	}
	if code := p.terminate(); code != api.ExitOK {
		t.Errorf("SIGTERM: exit %d", code)
	}
	if _, err := os.Stat(p.socket()); err == nil {
		t.Error("the socket is left behind")
	}
	code, _, stderr := command("run", "--data", filepath.Join(p.dir, "data"), "--api", "unix://"+p.socket(), "--network", "elsewhere")
	if code != api.ExitUsage || !strings.Contains(stderr, "belongs to network") {
		t.Errorf("another network: exit %d, %q", code, stderr)
	}
	// The same directory again is the same node of the same network.
	key := p.key
	p.start()
	if p.key != key || strings.Contains(p.stderr.String(), "ticket:") {
		t.Errorf("restarted as %s, was %s; stderr %q", p.key, key, p.stderr)
	}
}

func TestSecretsAreOnlyForTheUser(t *testing.T) {
	p := newProc(t).start()
	for _, name := range []string{"node.key", "root.key", "network.json"} {
		info, err := os.Stat(filepath.Join(p.dir, "data", name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if info, err := os.Stat(p.socket()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
}

// An open network needs its name alone; anyone is a member.
func TestOpenNetwork(t *testing.T) {
	a := newProc(t, "--network", "fog").start()
	b := newProc(t, "--network", "fog", "--bootstrap", a.addrs[0]).start()
	within(t, 20*time.Second, "they meet", func() error {
		n, err := a.local.Nodes(context.Background())
		if err != nil || len(n) != 2 {
			return fmt.Errorf("%d nodes, %v", len(n), err)
		}
		return nil
	})
	self, err := b.local.Node(context.Background())
	if err != nil || !self.Network.Open || self.Network.Name != "fog" || self.HasRoot {
		t.Errorf("%+v, %v", self, err)
	}
}

// Without --accept any, an owner is let in by the unix socket alone: it becomes
// the operator, a member, and its instances are accepted.
func TestTheSocketAdmitsItsOwner(t *testing.T) {
	p := newProc(t).start()
	ctx := context.Background()
	self, err := p.local.Node(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, stmt.NewNetworkID(self.Network.Name, self.Network.Root))
	var refused *p2p.RefusedError
	if _, err := c.node.Connect(ctx, p.addrs[0]); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "not a member") {
		t.Fatalf("a stranger connects: %v", err)
	}
	author, err := crdt.NewAuthor(c.owner, c.net, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, raws, err := author.Create(crdt.Spec{Name: "web", Pack: c.pack("").String(), Replicas: 1, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.local.Submit(ctx, raws); err != nil {
		t.Fatal(err)
	}
	owner := c.to(p) // now it may connect
	within(t, 20*time.Second, "the instance is claimed, and says what it waits for", func() error {
		i, err := owner.Instance(ctx, id)
		if err != nil || len(i.Replicas) != 1 || i.Status == api.StatusSuccess || i.Replicas[0].Reason == "" {
			return fmt.Errorf("%+v, %v", i, err)
		}
		return nil
	})
	if err := owner.FetchPack(ctx, i2pack(t, owner, id), api.FetchRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	within(t, 60*time.Second, "it runs", func() error {
		i, err := owner.Instance(ctx, id)
		if err != nil || i.Status != api.StatusSuccess {
			return fmt.Errorf("%s (%s), %v", i.Status, i.Reason, err)
		}
		return nil
	})
	nodes, err := p.local.Nodes(ctx)
	if err != nil || nodes[0].Labels[plan.AcceptLabel] != plan.AcceptLabelOf(false, []stmt.Key{stmt.KeyOf(c.owner)}) {
		t.Errorf("accept label %q, %v", nodes[0].Labels, err)
	}
	// What only the owner may see is refused on the socket, and the reverse.
	if err := p.local.Logs(ctx, id, api.LogOptions{}, nil); api.ExitOf(err) != api.ExitNotAllowed {
		t.Errorf("logs over the socket: %v", err)
	}
	if _, err := owner.Invite(ctx, api.InviteRequest{}); api.ExitOf(err) != api.ExitNotAllowed {
		t.Errorf("invite over libp2p: %v", err)
	}
	if err := owner.Logs(ctx, id, api.LogOptions{}, func(api.LogLine) error { return nil }); err != nil {
		t.Errorf("logs of the owner: %v", err)
	}
}

func i2pack(t *testing.T, c *api.Client, id string) string {
	t.Helper()
	i, err := c.Instance(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i.Pack
}

// A ticket admits a node while its invite lasts, and drained nodes say so.
func TestInviteAndDrain(t *testing.T) {
	first := newProc(t).start()
	ctx := context.Background()
	inv, err := first.local.Invite(ctx, api.InviteRequest{Seconds: 3600, Roles: []string{"node"}})
	if err != nil || !strings.HasPrefix(inv.Ticket, "form1") {
		t.Fatal(inv, err)
	}
	second := newProc(t, "--join", inv.Ticket).start()
	if err := second.local.Drain(ctx, true); err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the drained node says so", func() error {
		nodes, err := first.local.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, n := range nodes {
			if n.Key == second.key && n.Draining {
				return nil
			}
		}
		return fmt.Errorf("%+v", nodes)
	})
	// The second node holds the ticket it joined by, and can hand it on.
	if inv, err := second.local.Invite(ctx, api.InviteRequest{}); err != nil || !strings.HasPrefix(inv.Ticket, "form1") {
		t.Errorf("%+v, %v", inv, err)
	}
	for _, bad := range []api.InviteRequest{{Seconds: -1}, {Roles: []string{"king"}}} {
		if _, err := first.local.Invite(ctx, bad); api.ExitOf(err) != api.ExitUsage {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

// The web address answers reads of public state, under a local name only.
func TestWebIsReadOnly(t *testing.T) {
	p := newProc(t, "--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0").start()
	self, err := p.local.Node(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, base, path, host string) (int, http.Header, string) {
		t.Helper()
		req, err := http.NewRequest(method, "http://"+base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			req.Host = host
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header, string(b)
	}
	for _, tc := range []struct {
		method, base, path, host string
		status                   int
		body                     string
	}{
		{"GET", self.Web, "/v1/health", "", 200, `"ok":true`},
		{"GET", self.Web, "/v1/health", "localhost", 200, `"ok":true`},
		{"GET", self.Web, "/v1/health", "evil.example", 403, `"exit":5`},
		{"POST", self.Web, "/v1/statements", "", 405, `"exit":2`},
		{"GET", self.Web, "/v1/statements", "", 405, "takes POST"},
		{"GET", self.Web, "/v1/doctor", "", 403, "read"},
		{"GET", self.Web, "/debug/pprof/", "", 403, ""},
		{"GET", self.Web, "/v1/openapi.yaml", "", 200, "openapi: 3.1.0"},
		{"GET", self.Web, "/nothing", "", 404, "no such endpoint"},
		{"GET", self.Web, "/metrics", "", 200, "formd_peers 0"},
		{"GET", self.Web, "/metrics", "", 200, `formd_lease_requests_total{result="refused"} 0`},
		{"GET", self.Metrics, "/metrics", "", 200, "formd_state_log_bytes"},
	} {
		status, header, body := do(tc.method, tc.base, tc.path, tc.host)
		if status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%s %s as %q: %d %.200s", tc.method, tc.path, tc.host, status, body)
		}
		if kind := header.Get("Content-Type"); status >= 400 && kind != "application/problem+json" {
			t.Errorf("%s %s as %q: an error of type %q", tc.method, tc.path, tc.host, kind)
		}
		if allow := header.Get("Allow"); (status == 405) != (allow != "") {
			t.Errorf("%s %s as %q: %d, Allow %q", tc.method, tc.path, tc.host, status, allow)
		}
	}
}

func TestDefaultWebPortGivesWay(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l, moved, err := listenWeb("", taken.Addr().String())
	if err != nil || !moved || l.Addr().String() == taken.Addr().String() {
		t.Fatalf("%v, moved %v, %v", l, moved, err)
	}
	l.Close()
	if l, _, err := listenWeb(taken.Addr().String(), config.DefaultWeb); err == nil {
		l.Close()
		t.Error("an explicit port that is taken is replaced")
	}
	if l, moved, err := listenWeb("", "127.0.0.1:3003"); err != nil || !moved || l.Addr().(*net.TCPAddr).Port == gatewayPort {
		t.Errorf("the gateway's port is taken: %v, moved %v, %v", l, moved, err)
	} else {
		l.Close()
	}
	if c := config.Default(config.HostEnv()); c.Web != "" || c.Listen != nil {
		t.Errorf("the defaults name ports as if they were explicit: %q, %q", c.Web, c.Listen)
	}
	if l, _, err := listenWeb(config.Off, config.DefaultWeb); l != nil || err != nil {
		t.Errorf("off: %v, %v", l, err)
	}
}

// A formd that was stopped notices, synchronises, and only then decides again; its
// VMs and claims are as they were.
func TestStoppedProcessResynchronises(t *testing.T) {
	procs := swarm(t, 2)
	p := procs[1]
	said := func(word string) int { return strings.Count(p.stderr.String(), word) }
	within(t, 60*time.Second, "first synchronisation", func() error {
		if said("synchronised=true") == 0 {
			return errors.New("not synchronised")
		}
		return nil
	})
	if said("this node slept") != 0 {
		t.Fatal("it believes that it slept")
	}
	before := said("synchronised=true")
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := p.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGSTOP)
	<-time.After(boottime.Gap + 2*time.Second) // what is tested is this wait
	signal(syscall.SIGCONT)
	within(t, 60*time.Second, "synchronisation after the stop", func() error {
		if said("this node slept") != 1 || said("synchronised=true") != before+1 {
			return errors.New("not synchronised again")
		}
		return nil
	})
}
