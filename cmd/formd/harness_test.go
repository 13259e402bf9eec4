package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/wg/wgtest"
)

// TestMain lets this test binary be formd itself: the tests start real
// processes, which can be killed.
func TestMain(m *testing.M) {
	if os.Getenv("FORMD_TEST_MAIN") == "1" {
		os.Exit(Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// proc is one formd process.
type proc struct {
	t      *testing.T
	dir    string
	args   []string
	cmd    *exec.Cmd
	exited chan struct{}
	key    stmt.Key
	addrs  []string
	stderr *lockedBuffer
	local  *api.Client       // over its unix socket
	ns     *wgtest.Namespace // in which it runs; nil: this one
	wrap   []string          // what starts it there
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// quietArgs keep a node off everything but loopback and its own directory.
var quietArgs = []string{
	"--vm-driver", "fake", "--web", "off", "--no-mdns", "--no-portmap", "--mesh", "off",
	"--listen", "/ip4/127.0.0.1/tcp/0", "--listen", "/ip4/127.0.0.1/udp/0/quic-v1",
	"--memory", "4G", "--disk", "50G", "--cpus", "4",
}

// newProc prepares a node in a directory of its own, with a socket path that is
// short enough.
func newProc(t *testing.T, args ...string) *proc {
	t.Helper()
	dir, err := os.MkdirTemp("", "formd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proc{t: t, dir: dir}
	p.args = append([]string{"run", "--data", filepath.Join(dir, "data"), "--api", "unix://" + p.socket()}, quietArgs...)
	p.args = append(p.args, args...)
	t.Cleanup(p.kill)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("stderr of %s:\n%s", p.key, p.stderr)
		}
	})
	return p
}

func (p *proc) socket() string { return filepath.Join(p.dir, "api.sock") }

// start runs the process and waits for its ready line.
func (p *proc) start() *proc {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0], p.args...)
	if p.ns != nil { // ip becomes what it runs: the process is formd's
		p.cmd = p.ns.Command(context.Background(), slices.Concat(p.wrap, []string{os.Args[0]}, p.args)...)
	}
	p.cmd.Env = append(os.Environ(), "FORMD_TEST_MAIN=1", "HOME="+p.dir, "XDG_CONFIG_HOME="+p.dir, "GOCOVERDIR="+p.dir)
	p.stderr = &lockedBuffer{}
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.exited = make(chan struct{})
	lines := make(chan string, 16)
	go func() {
		defer close(p.exited)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			lines <- sc.Text()
		}
		_ = p.cmd.Wait() // the exit state is in ProcessState
	}()
	select {
	case line := <-lines:
		p.parseReady(line)
	case <-p.exited:
		p.t.Fatalf("formd ended before it was ready:\n%s", p.stderr)
	case <-time.After(60 * time.Second):
		p.t.Fatalf("formd is not ready after 60 s:\n%s", p.stderr)
	}
	p.local = api.NewClient(api.Unix(p.socket()))
	p.t.Cleanup(p.local.Close)
	return p
}

func (p *proc) parseReady(line string) {
	p.t.Helper()
	fields := strings.Fields(line)
	if len(fields) != 4 || fields[0] != "ready" {
		p.t.Fatalf("ready line %q", line)
	}
	value := func(i int, key string) string {
		v, ok := strings.CutPrefix(fields[i], key+"=")
		if !ok {
			p.t.Fatalf("ready line %q: field %d is not %s=", line, i, key)
		}
		return v
	}
	var err error
	if p.key, err = stmt.ParseKey(value(1, "peer")); err != nil {
		p.t.Fatal(err)
	}
	if got := value(2, "api"); got != p.socket() {
		p.t.Fatalf("api=%s, want %s", got, p.socket())
	}
	p.addrs = strings.Split(value(3, "listen"), ",")
}

// kill ends the process as a crash would.
func (p *proc) kill() {
	if p.cmd != nil && p.cmd.Process != nil && p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill() // it may be gone already
		<-p.exited
	}
}

// terminate ends it in order and returns its exit code.
func (p *proc) terminate() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("formd does not end:\n%s", p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

// ticket is what a first start printed.
func (p *proc) ticket() string {
	p.t.Helper()
	var ticket string
	within(p.t, 5*time.Second, "a ticket on stderr", func() error { // its pipe may lag behind stdout's
		for line := range strings.Lines(p.stderr.String()) {
			if t, ok := strings.CutPrefix(line, "ticket: "); ok && strings.HasSuffix(t, "\n") {
				ticket = strings.TrimSpace(t)
				return nil
			}
		}
		return errors.New("none")
	})
	return ticket
}

// within polls until check says nil, and fails the test with its last error
// otherwise.
func within(t *testing.T, d time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, d, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// client is an owner at a terminal: an owner's key, a throw-away libp2p identity
// and a store of its own.
type client struct {
	t     *testing.T
	owner ed25519.PrivateKey
	key   ed25519.PrivateKey
	net   stmt.NetworkID
	node  *p2p.Node
	store *store.Store
}

func newClient(t *testing.T, network stmt.NetworkID) *client {
	t.Helper()
	c := &client{t: t, owner: newKey(t), key: newKey(t), net: network}
	var err error
	if c.store, err = store.Open(store.Config{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	c.node, err = p2p.New(p2p.Config{
		Key: c.key, Network: network.String(), ClientOnly: true, Blocks: c.store.Blocks(), Source: c.store.Source(), Admission: c,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("client: %v", err)
		}
		c.store.Close()
	})
	<-c.node.Ready()
	return c
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Hello presents the owner's session.
func (c *client) Hello(to peer.ID) ([]byte, error) {
	server, err := stmt.KeyOfPeerID(string(to))
	if err != nil {
		return nil, err
	}
	s, err := stmt.SignSession(c.owner, c.net, stmt.SessionBody{
		Client: stmt.KeyOf(c.key), Server: server, Expires: time.Now().Add(time.Hour).Unix(),
	})
	if err != nil {
		return nil, err
	}
	return stmt.EncodeHello(stmt.Hello{Session: s})
}

// Admit trusts whom it dialled.
func (c *client) Admit(context.Context, peer.ID, []byte) (bool, error) { return false, nil }

// Gone does nothing.
func (c *client) Gone(peer.ID) {}

// to connects to a node and returns its API.
func (c *client) to(p *proc) *api.Client {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	id, err := c.node.Connect(ctx, p.addrs[0])
	if err != nil {
		c.t.Fatalf("connect to %s: %v", p.key, err)
	}
	out := api.NewClient(func(ctx context.Context) (net.Conn, error) { return c.node.Open(ctx, id, api.Proto) })
	c.t.Cleanup(out.Close)
	return out
}

// get asks a guest's port over proxy/1 and returns all it answers.
func (c *client) get(p *proc, instance string, slot, port int) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := c.node.Open(ctx, peer.ID(p.key.PeerID()), api.ProtoProxy)
	if err != nil {
		return "", err
	}
	defer s.Close()
	if err := s.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	if err := api.WriteHeader(s, api.ProxyRequest{Instance: instance, Slot: slot, Port: port}); err != nil {
		return "", err
	}
	var reply api.StreamReply
	if err := api.ReadHeader(s, &reply); err != nil {
		return "", err
	}
	if err := reply.Err(); err != nil {
		return "", err
	}
	if _, err := io.WriteString(s, "GET / HTTP/1.0\r\nHost: x\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(s)
	return string(b), err
}

// pack puts a tiny base and a pack on it into the client's store. The fake
// driver never opens the images.
func (c *client) pack(salt string) cid.Cid {
	c.t.Helper()
	ctx := context.Background()
	image := func(kind, format string) store.Entry {
		path := filepath.Join(c.t.TempDir(), kind)
		content := bytes.Repeat([]byte(kind+salt), 20_000)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			c.t.Fatal(err)
		}
		e, err := c.store.AddImage(ctx, path, kind, format)
		if err != nil {
			c.t.Fatal(err)
		}
		return e
	}
	base, err := c.store.PutBase(ctx, store.Base{
		Name: "test:1", Kernel: image("kernel", "vmlinuz"), Initrd: image("initrd", "cpio"),
		Modules: image("modules", "squashfs"), Rootfs: image("rootfs", "squashfs"),
	}, c.owner)
	if err != nil {
		c.t.Fatal(err)
	}
	id, err := c.store.PutPack(ctx, store.Root{
		Name: "web", Base: base, Layers: []store.Entry{image("layer", "squashfs")},
		Run: store.RunConfig{VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30, Entrypoint: []string{"/bin/true"}},
	}, c.owner)
	if err != nil {
		c.t.Fatal(err)
	}
	return id
}

// swarm starts a private network of n nodes that accept everybody and take over
// quickly.
func swarm(t *testing.T, n int) []*proc {
	t.Helper()
	first := newProc(t, "--accept", "any", "--takeover-delay", "1s").start()
	procs := []*proc{first}
	for range n - 1 {
		procs = append(procs, newProc(t, "--join", first.ticket(), "--takeover-delay", "1s").start())
	}
	for _, p := range procs {
		within(t, 30*time.Second, "nodes meet", func() error {
			nodes, err := p.local.Nodes(context.Background())
			if err != nil {
				return err
			}
			if len(nodes) != n {
				return fmt.Errorf("%s knows %d nodes, want %d", p.key, len(nodes), n)
			}
			return nil
		})
	}
	return procs
}
