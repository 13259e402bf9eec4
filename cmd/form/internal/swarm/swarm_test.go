package swarm

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

func newKey(t *testing.T, n byte) ed25519.PrivateKey {
	t.Helper()
	seed := make([]byte, 32)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

// ticketFor is a ticket of a private network, whose invite lasts until end.
func ticketFor(t *testing.T, root ed25519.PrivateKey, end time.Time) *stmt.Ticket {
	t.Helper()
	id := stmt.NewNetworkID("test", stmt.KeyOf(root))
	seed := make([]byte, 32)
	invite, err := stmt.NewInvite(root, id, seed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleOwner}, Expires: end.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	return &stmt.Ticket{Name: "test", Root: stmt.KeyOf(root), InviteSeed: seed, Invite: invite}
}

func TestHello(t *testing.T) {
	root, owner, client, server := newKey(t, 1), newKey(t, 2), newKey(t, 3), newKey(t, 4)
	now := time.Now()
	for _, c := range []struct {
		name   string
		ticket *stmt.Ticket
		member bool
	}{
		{"no ticket", nil, false},
		{"a ticket without an invite", &stmt.Ticket{Name: "test", Root: stmt.KeyOf(root)}, false},
		{"an invite", ticketFor(t, root, now.Add(time.Hour)), true},
		{"an ended invite", ticketFor(t, root, now.Add(-time.Hour)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			id := stmt.NewNetworkID("test", stmt.KeyOf(root))
			a := &admission{key: owner, client: stmt.KeyOf(client), net: id, ticket: c.ticket}
			b, err := a.Hello(peer.ID(stmt.KeyOf(server).PeerID()))
			if err != nil {
				t.Fatal(err)
			}
			h, err := stmt.DecodeHello(b)
			if err != nil {
				t.Fatal(err)
			}
			_, who, _, err := stmt.CheckSession(h.Session, id, stmt.KeyOf(client), stmt.KeyOf(server), now)
			if err != nil || who != stmt.KeyOf(owner) {
				t.Errorf("the session speaks for %s, %v", who, err)
			}
			if _, _, _, err := stmt.CheckSession(h.Session, id, stmt.KeyOf(client), stmt.KeyOf(root), now); err == nil {
				t.Error("the session is good for another server")
			}
			if (h.Member != nil) != c.member {
				t.Fatalf("member statement: %v, want %v", h.Member != nil, c.member)
			}
			if c.member {
				m, err := stmt.CheckMember(h.Member, id, stmt.KeyOf(root))
				if err != nil || m.Key != stmt.KeyOf(owner) || m.Role != stmt.RoleOwner {
					t.Errorf("member %+v, %v", m, err)
				}
			}
		})
	}
}

// gatekeeper is a node's admission that only lets sessions in.
type gatekeeper struct {
	self   stmt.Key
	net    stmt.NetworkID
	mu     sync.Mutex
	owners []stmt.Key
}

func (g *gatekeeper) Hello(peer.ID) ([]byte, error) { return stmt.EncodeHello(stmt.Hello{}) }

func (g *gatekeeper) Admit(_ context.Context, from peer.ID, b []byte) (bool, error) {
	h, err := stmt.DecodeHello(b)
	if err != nil {
		return false, err
	}
	client, err := stmt.KeyOfPeerID(string(from))
	if err != nil {
		return false, err
	}
	_, owner, _, err := stmt.CheckSession(h.Session, g.net, client, g.self, time.Now())
	if err != nil {
		return false, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.owners = append(g.owners, owner)
	return true, nil
}

func (g *gatekeeper) Gone(peer.ID) {}

// queue is a net.Listener of streams.
type queue struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return &net.UnixAddr{Name: "libp2p"} }

// serve runs a node that answers the API and echoes what is proxied to it.
func serve(t *testing.T, id stmt.NetworkID) (*p2p.Node, *gatekeeper) {
	t.Helper()
	key := newKey(t, 9)
	gate := &gatekeeper{self: stmt.KeyOf(key), net: id}
	n, err := p2p.New(p2p.Config{Key: key, Network: protocolName(id), Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Admission: gate})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	mux := http.NewServeMux()
	answer := func(path string, v any) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if err := json.NewEncoder(w).Encode(v); err != nil {
				t.Error(err)
			}
		})
	}
	node := api.Node{Key: gate.self, Addrs: n.Addrs()}
	answer("/v1/health", api.Health{OK: true, Version: "test"})
	answer("/v1/node", api.Self{Node: node, Network: api.Network{ID: id.String()}})
	answer("/v1/nodes", []api.Node{node})
	streams := &queue{conns: make(chan net.Conn), done: make(chan struct{})}
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(streams) }() // ends with Close
	n.Handle(api.Proto, func(ctx context.Context, _ peer.ID, c net.Conn) {
		select {
		case streams.conns <- c:
		case <-ctx.Done():
		}
	})
	n.Handle(api.ProtoProxy, func(_ context.Context, _ peer.ID, c net.Conn) {
		defer c.Close()
		var r api.ProxyRequest
		reply := api.StreamReply{OK: true}
		if err := api.ReadHeader(c, &r); err != nil {
			t.Error(err)
			return
		}
		if r.Port != 80 {
			reply = api.StreamReply{Error: "connection refused", Exit: api.ExitFailed}
		}
		if err := api.WriteHeader(c, reply); err == nil && reply.OK {
			_, _ = io.Copy(c, c) // until the client is done
		}
	})
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, srv.Close()); err != nil {
			t.Error(err)
		}
	})
	<-n.Ready()
	return n, gate
}

// A client that knows nothing but an address reaches the API and a guest, as
// its owner, and has opened the key once.
func TestDialPeer(t *testing.T) {
	id := stmt.NewNetworkID("test", stmt.Key{})
	n, gate := serve(t, id)
	owner := newKey(t, 2)
	opened := 0
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := Dial(ctx, Config{
		Peers: []string{"/ip4/127.0.0.1/tcp/1/p2p/" + n.ID().String(), n.Addrs()[0]},
		Key:   func() (ed25519.PrivateKey, error) { opened++; return owner, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	if h, err := c.API().Health(ctx); err != nil || h.Version != "test" || c.Local() {
		t.Errorf("health %+v, %v, local %v", h, err, c.Local())
	}
	if got, err := c.Network(ctx); err != nil || got != id {
		t.Errorf("network %s, %v", got, err)
	}
	gate.mu.Lock()
	if len(gate.owners) != 1 || gate.owners[0] != stmt.KeyOf(owner) {
		t.Errorf("the node saw sessions of %v", gate.owners)
	}
	gate.mu.Unlock()
	if opened != 1 {
		t.Errorf("the key was opened %d times", opened)
	}
	conn, err := c.Proxy(ctx, gate.self, api.ProxyRequest{Instance: "x", Port: 80})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(conn, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(conn); err != nil || string(b) != "ping" {
		t.Errorf("echo %q, %v", b, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Proxy(ctx, gate.self, api.ProxyRequest{Instance: "x", Port: 81}); api.ExitOf(err) != api.ExitFailed || !strings.Contains(fmt.Sprint(err), "refused") {
		t.Errorf("a port that refuses: %v", err)
	}
	if err := c.Reach(ctx, stmt.KeyOf(newKey(t, 77))); api.ExitOf(err) != api.ExitUnreachable {
		t.Errorf("a node nobody knows: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	id := stmt.NewNetworkID("test", stmt.Key{})
	n, _ := serve(t, id)
	noKey := errors.New("wrong password")
	good := func() (ed25519.PrivateKey, error) { return newKey(t, 2), nil }
	away := []string{"/ip4/127.0.0.1/tcp/1/p2p/" + n.ID().String()}
	for _, c := range []struct {
		name string
		cfg  Config
		want func(error) bool
	}{
		{"no way at all", Config{Key: good}, isUnreachable},
		{"no socket", Config{Key: good, API: filepath.Join(t.TempDir(), "s")}, isUnreachable},
		{"nobody there", Config{Key: good, Peers: away}, isUnreachable},
		{"not an address", Config{Key: good, Peers: []string{"x"}}, isUnreachable},
		{"another network", Config{Key: good, Peers: n.Addrs(), Ticket: &stmt.Ticket{Name: "other"}}, func(err error) bool { return errors.Is(err, ErrNetwork) }},
		{"no key", Config{Key: func() (ed25519.PrivateKey, error) { return nil, noKey }, Peers: n.Addrs()}, func(err error) bool { return errors.Is(err, noKey) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if _, err := Dial(ctx, c.cfg); err == nil || !c.want(err) {
				t.Errorf("Dial: %v", err)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Dial(ctx, Config{Key: good, Peers: away}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func isUnreachable(err error) bool {
	var u *UnreachableError
	return errors.As(err, &u) && u.Error() != ""
}
