package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/form/internal/agent"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/names"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/wg/wgtest"
)

// testNode is what a node in a namespace of its own tells of itself.
type testNode struct {
	Peer    string     // its multiaddr
	Guest   netip.Addr // which answers HTTP on port 80
	Guest4  netip.Addr // the same
	Owner   stmt.Key
	KeyFile string
}

// TestHelperNode is no test: it is a node at an address, for tests in namespaces,
// until its standard input ends.
func TestHelperNode(t *testing.T) {
	ip := os.Getenv("FORM_TEST_NODE")
	if ip == "" {
		t.Skip("started by other tests")
	}
	h := newHome(t)
	h.daemon.ip = ip
	g := h.hosts(h.ships(crdt.Spec{Name: "hello", Replicas: 1}))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "hello over the mesh") // the other end judges
	})}
	var serving sync.WaitGroup
	for _, a := range []netip.Addr{g.address, g.address4} {
		l, err := g.Net.ListenTCPAddrPort(netip.AddrPortFrom(a, 80))
		if err != nil {
			t.Fatal(err)
		}
		serving.Go(func() { _ = srv.Serve(l) }) // ends with Close
	}
	b, err := json.Marshal(testNode{Peer: h.daemon.addrs[0], Guest: g.address, Guest4: g.address4, Owner: stmt.KeyOf(h.owner), KeyFile: os.Getenv("FORM_KEY_FILE")})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("node %s\n", b)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		t.Error(err)
	}
	_ = srv.Close()
	serving.Wait()
}

// laptop is a machine in a namespace of its own, one cable away from a node with a
// guest on the mesh.
type laptop struct {
	t    *testing.T
	ns   *wgtest.Namespace
	node testNode
	env  []string
}

func newLaptop(t *testing.T) *laptop {
	far, near := wgtest.NewNamespace(t, "node"), wgtest.NewNamespace(t, "laptop")
	wgtest.Link(far, "eth0", "10.9.0.1/24", near, "eth0", "10.9.0.2/24")
	l := &laptop{t: t, ns: near}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := far.Command(context.Background(), self, "-test.run", "^TestHelperNode$")
	cmd.Env = append(os.Environ(), "FORM_TEST_NODE=10.9.0.1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error("the node: ", err)
		}
	})
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	text, ok := strings.CutPrefix(line, "node ")
	if err == nil && ok {
		err = json.Unmarshal([]byte(text), &l.node)
	}
	if err != nil || !ok {
		t.Fatalf("the node says %q, %v", line, err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }() // go test's own words
	home := t.TempDir()
	if err := kit.Save(kit.Dir{Config: filepath.Join(home, ".config", "form")}, kit.Config{Owner: l.node.Owner.String(), KeyFile: l.node.KeyFile}); err != nil {
		t.Fatal(err)
	}
	l.env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "FORM_") || strings.HasPrefix(kv, "XDG_") || strings.HasPrefix(kv, "HOME=")
	}), "FORM_TEST_MAIN=1", "HOME="+home, "FORM_PEER="+l.node.Peer)
	return l
}

// form is a run of form on the laptop.
func (l *laptop) form(ctx context.Context, args ...string) *exec.Cmd {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := l.ns.Command(ctx, append([]string{self}, args...)...)
	cmd.Env = l.env
	return cmd
}

// must is what form answers.
func (l *laptop) must(args ...string) string {
	l.t.Helper()
	var talk strings.Builder
	cmd := l.form(l.t.Context(), args...)
	cmd.Stderr = &talk
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("form %v: %v\n%s", args, err, &talk)
	}
	return string(out)
}

// fetches asks the guest for its page by a URL.
func (l *laptop) fetches(host string) {
	l.t.Helper()
	if got := l.ns.Run("curl", "-gsS", "--max-time", "20", "http://"+host+"/"); got != "hello over the mesh" {
		l.t.Errorf("curl %s: %q", host, got)
	}
}

// A user without any rights, on a machine without a daemon, reaches a guest over the
// mesh.
func TestMeshWithoutRights(t *testing.T) {
	l := newLaptop(t)
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("not installed: setpriv")
	}
	dir := shortDir(t)
	program, home := filepath.Join(dir, "form"), filepath.Join(dir, "home")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l.ns.Run("cp", self, program)
	key, err := keystore.Load(l.node.KeyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	config := kit.Dir{Config: filepath.Join(home, ".config", "form")}
	if err := kit.Save(config, kit.Config{Owner: l.node.Owner.String(), KeyFile: "key.pem"}); err != nil {
		t.Fatal(err)
	}
	if err := keystore.Save(filepath.Join(config.Config, "key.pem"), key, nil); err != nil {
		t.Fatal(err)
	}
	l.ns.Run("chown", "-R", "65534:65534", home)
	form := func(args ...string) string {
		cmd := l.ns.Command(t.Context(), append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all", program}, args...)...)
		cmd.Env = append(slices.Clone(l.env), "HOME="+home, "XDG_RUNTIME_DIR="+filepath.Join(home, "run"))
		cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
		var talk strings.Builder
		cmd.Stderr = &talk
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("form %v: %v\n%s", args, err, &talk)
		}
		return string(out)
	}
	for range 2 {
		begun := time.Now()
		if out := form("proxy", "--via", "mesh", "hello."+testSettings.Zone, "80"); !strings.HasSuffix(out, "hello over the mesh") {
			t.Errorf("the guest says %q", out)
		}
		t.Logf("a connection, the first with the agent's start: %s", time.Since(begun))
	}
	var s agent.Status
	if err := json.Unmarshal([]byte(form("net", "agent", "status", "--json")), &s); err != nil || len(s.Peers) != 1 || s.Peers[0].Handshake == nil {
		t.Fatalf("status %+v, %v", s, err)
	}
	t.Logf("the agent has %s resident", resident(t, s.PID))
	form("net", "agent", "stop")
}

// shortDir is a folder that others may enter, with a path that a socket's may begin
// with.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "form-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// What form net config prints is all that wg-quick and a standard WireGuard need,
// here the reference one in user space.
func TestNetConfigForStandardClients(t *testing.T) {
	l := newLaptop(t)
	for _, tool := range []string{"wg-quick", "wg", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("not installed: ", tool)
		}
	}
	text := l.must("net", "config", "--device", "phone")
	name := fmt.Sprintf("fc%d", os.Getpid())
	quick := newQuick(t, l.ns, name, text)
	quick("up")
	l.fetches("[" + l.node.Guest.String() + "]")
	l.fetches(l.node.Guest4.String())
	if shown := l.ns.Run("wg", "show", name, "latest-handshakes"); strings.HasSuffix(strings.TrimSpace(shown), "\t0") {
		t.Errorf("no handshake: %s", shown)
	}
	quick("down")
	peers := l.must("net", "config", "--peers", "phone")
	if !strings.HasSuffix(text, peers) || strings.Contains(peers, "PrivateKey") || !strings.HasPrefix(peers, "\n# hello/0\n[Peer]\n") {
		t.Errorf("the peers of the device:\n%s\nits configuration:\n%s", peers, text)
	}
	rotated := l.must("net", "config", "--rotate", "phone")
	if strings.Contains(rotated, secretOf(text)) || addressOf(rotated) != addressOf(text) || !strings.HasSuffix(rotated, peers) {
		t.Errorf("with a new key:\n%s\nit was:\n%s", rotated, text)
	}
	quick = newQuick(t, l.ns, name, rotated)
	quick("up")
	l.fetches("[" + l.node.Guest.String() + "]")
	quick("down")
	var devices []device
	if err := json.Unmarshal([]byte(l.must("key", "device", "ls", "--json")), &devices); err != nil || len(devices) != 1 || devices[0].Name != "phone" || devices[0].This {
		t.Errorf("devices %+v, %v", devices, err)
	}
}

// newQuick is wg-quick in a namespace with a configuration, where a reference WireGuard
// runs in user space.
func newQuick(t *testing.T, ns *wgtest.Namespace, name, text string) (quick func(verb string)) {
	t.Helper()
	dir := t.TempDir()
	userspace := filepath.Join(dir, "wireguard-go")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", userspace, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	conf := filepath.Join(dir, name+".conf")
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return func(verb string) {
		t.Helper()
		cmd := ns.Command(t.Context(), "wg-quick", verb, conf)
		cmd.Env = append(os.Environ(), "WG_QUICK_USERSPACE_IMPLEMENTATION="+userspace)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("wg-quick %s: %v\n%s\n%s", verb, err, out, text)
		}
	}
}

func secretOf(conf string) string  { return lineOf(conf, "PrivateKey = ") }
func addressOf(conf string) string { return lineOf(conf, "Address = ") }

func lineOf(conf, key string) string {
	_, rest, _ := strings.Cut(conf, key)
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// form net join gives every program the mesh, by address and by name, and form net
// leave leaves nothing.
func TestNetJoin(t *testing.T) {
	l := newLaptop(t)
	for _, detach := range []bool{false, true} {
		name := fmt.Sprintf("fj%d", os.Getpid())
		args := []string{"net", "join", "--interface", name, "--no-dns"}
		ended := make(chan error, 1)
		if detach {
			if out := l.must(append(args, "--detach")...); !strings.Contains(out, "joined: interface "+name) {
				t.Errorf("join says %q", out)
			}
			close(ended)
		} else {
			l.joins(args, ended)
		}
		l.fetches("[" + l.node.Guest.String() + "]")
		l.fetches(l.node.Guest4.String())
		if shown := l.ns.Run("wg", "show", name, "latest-handshakes"); strings.HasSuffix(strings.TrimSpace(shown), "\t0") {
			t.Errorf("no handshake: %s", shown)
		}
		own := strings.Fields(l.ns.Run("ip", "-6", "-brief", "address", "show", "dev", name))
		if len(own) < 3 {
			t.Fatalf("the interface has no address: %v", own)
		}
		server, _, _ := strings.Cut(own[2], "/")
		for _, host := range []string{"hello", "0.hello", "hello." + names.Label(l.node.Owner)} {
			got := l.ns.Run("dig", "+short", "+time=5", "@"+server, host+"."+testSettings.Zone, "AAAA")
			if strings.TrimSpace(got) != l.node.Guest.String() {
				t.Errorf("%s is %q, want %s", host, got, l.node.Guest)
			}
			if got := l.ns.Run("dig", "+short", "+time=5", "@"+server, host+"."+testSettings.Zone, "A"); strings.TrimSpace(got) != l.node.Guest4.String() {
				t.Errorf("%s has the IPv4 address %q, want %s", host, got, l.node.Guest4)
			}
		}
		if out := l.must("net", "leave"); out != "left\n" {
			t.Errorf("leave says %q", out)
		}
		if err := <-ended; err != nil {
			t.Errorf("join ends with %v", err)
		}
		if links := l.ns.Run("ip", "-brief", "link"); strings.Contains(links, name) {
			t.Errorf("it leaves an interface: %s", links)
		}
		if routes := l.ns.Run("ip", "-6", "route"); strings.Contains(routes, name) {
			t.Errorf("it leaves routes: %s", routes)
		}
	}
	cmd := l.form(t.Context(), "net", "leave")
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != api.ExitNotFound {
		t.Errorf("leaving again: %v", err)
	}
}

// joins runs form net join until it says that it has; ended gets its end.
func (l *laptop) joins(args []string, ended chan<- error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l.t.Cleanup(cancel)
	cmd := l.form(ctx, args...)
	var talk strings.Builder
	cmd.Stderr = &talk
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "joined: ") {
		_ = cmd.Wait()
		l.t.Fatalf("join says %q, %v\n%s", line, err, &talk)
	}
	go func() {
		_, _ = io.Copy(io.Discard, r)
		ended <- cmd.Wait()
	}()
}
