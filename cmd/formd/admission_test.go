package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
)

func newTestKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// testTicket opens root's network until expires, by way of boot.
func testTicket(t *testing.T, root ed25519.PrivateKey, expires time.Time, boot ...stmt.Key) stmt.Ticket {
	t.Helper()
	ticket := stmt.Ticket{Name: "test", Root: stmt.KeyOf(root), InviteSeed: newSeed()}
	for _, k := range boot {
		ticket.Bootstrap = append(ticket.Bootstrap, fmt.Sprintf("/ip4/127.0.0.1/tcp/1/p2p/%s", k))
	}
	var err error
	ticket.Invite, err = stmt.NewInvite(root, ticket.Network(), ticket.InviteSeed, stmt.InviteBody{Roles: []stmt.Role{stmt.RoleNode, stmt.RoleOwner}, Expires: expires.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

// testNode is the identity, state and admission of a node that joined by a
// ticket and has an empty state.
func testNode(t *testing.T, ticket stmt.Ticket, now time.Time) (*identity, *crdt.Replica, *admission) {
	t.Helper()
	c := config.Config{Data: t.TempDir(), Join: ticket.String()}
	id, err := loadIdentity(c, now)
	if err != nil {
		t.Fatal(err)
	}
	clock := func() time.Time { return now }
	r, err := crdt.Open(crdt.ReplicaConfig{Dir: t.TempDir(), Key: id.Key, Network: id.network(), Root: id.Root, Engine: crdt.NewModel(), Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := r.Submit(context.Background(), id.Member); err != nil {
		t.Fatal(err)
	}
	a, err := newAdmission(id, r, clock)
	if err != nil {
		t.Fatal(err)
	}
	return id, r, a
}

func peerOf(k stmt.Key) peer.ID { return peer.ID(k.PeerID()) }

func memberHello(t *testing.T, ticket stmt.Ticket, key stmt.Key, now time.Time) []byte {
	t.Helper()
	raw, err := ticket.Join(key, stmt.RoleNode, now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := stmt.EncodeHello(stmt.Hello{Member: raw})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A newcomer lets in the peers that its ticket names though their own invites
// have ended, and nobody else by an ended invite.
func TestJoinThroughOldMember(t *testing.T) {
	root, old, stranger := newTestKey(t), newTestKey(t), newTestKey(t)
	t0 := time.Unix(1_750_000_000, 0)
	first := testTicket(t, root, t0.Add(time.Hour))
	now := t0.Add(30 * 24 * time.Hour)
	_, _, a := testNode(t, testTicket(t, root, now.Add(time.Hour), stmt.KeyOf(old)), now)
	ctx := context.Background()
	if _, err := a.Admit(ctx, peerOf(stmt.KeyOf(stranger)), memberHello(t, first, stmt.KeyOf(stranger), t0)); !errors.Is(err, stmt.ErrExpired) {
		t.Errorf("a stranger is admitted by an ended invite: %v", err)
	}
	if _, err := a.Admit(ctx, peerOf(stmt.KeyOf(stranger)), memberHello(t, first, stmt.KeyOf(old), t0)); err == nil {
		t.Error("a stranger is admitted by another's admission")
	}
	if _, err := a.Admit(ctx, peerOf(stmt.KeyOf(old)), memberHello(t, first, stmt.KeyOf(old), t0)); err != nil {
		t.Errorf("the ticket's peer is refused: %v", err)
	}
}

// A new ticket renews the admission of a node that came by another; an ended one
// does no harm.
func TestRejoin(t *testing.T) {
	root := newTestKey(t)
	t0 := time.Unix(1_750_000_000, 0)
	c := config.Config{Data: t.TempDir(), Join: testTicket(t, root, t0.Add(time.Hour)).String()}
	load := func(now time.Time) (*identity, int64) {
		t.Helper()
		id, err := loadIdentity(c, now)
		if err != nil {
			t.Fatal(err)
		}
		m, err := stmt.CheckMember(id.Member, id.network(), id.Root)
		if err != nil {
			t.Fatal(err)
		}
		return id, m.Expires
	}
	first, _ := load(t0)
	if !first.First {
		t.Error("the first start is not told from others")
	}
	later := t0.Add(30 * 24 * time.Hour)
	if id, expires := load(later); expires != t0.Add(time.Hour).Unix() || id.First {
		t.Errorf("the old ticket again: admitted until %d, first %v", expires, id.First)
	}
	c.Join = testTicket(t, root, later.Add(time.Hour)).String()
	if id, expires := load(later); expires != later.Add(time.Hour).Unix() || id.self() != first.self() {
		t.Errorf("a new ticket does not renew: admitted until %d", expires)
	}
	c.Join = ""
	if _, expires := load(later.Add(24 * time.Hour)); expires != later.Add(time.Hour).Unix() {
		t.Errorf("the renewal is not kept: until %d", expires)
	}
}

// A session makes a client, also of a key that is a member node.
func TestSessionIsAClient(t *testing.T) {
	root, other := newTestKey(t), newTestKey(t)
	now := time.Unix(1_750_000_000, 0)
	ticket := testTicket(t, root, now.Add(time.Hour))
	id, _, a := testNode(t, ticket, now)
	node := stmt.KeyOf(other)
	if client, err := a.Admit(context.Background(), peerOf(node), memberHello(t, ticket, node, now)); err != nil || client {
		t.Fatalf("a node: client %v, %v", client, err)
	}
	owner, err := ticket.Join(node, stmt.RoleOwner, now)
	if err != nil {
		t.Fatal(err)
	}
	session, err := stmt.SignSession(other, id.network(), stmt.SessionBody{Client: node, Server: id.self(), Expires: now.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	hello, err := stmt.EncodeHello(stmt.Hello{Member: owner, Session: session})
	if err != nil {
		t.Fatal(err)
	}
	if client, err := a.Admit(context.Background(), peerOf(node), hello); err != nil || !client {
		t.Fatalf("a session: client %v, %v", client, err)
	}
}

// fakeConns are connections that end when they are dropped.
type fakeConns struct {
	open    []p2p.PeerInfo
	dropped chan peer.ID
}

func (f *fakeConns) PeerInfo() []p2p.PeerInfo { return slices.Clone(f.open) }

func (f *fakeConns) Drop(p peer.ID, _ string) error {
	f.open = slices.DeleteFunc(f.open, func(i p2p.PeerInfo) bool { return i.ID == p })
	f.dropped <- p
	return nil
}

// A revocation cuts the node it is about, and the client of an owner it is about.
func TestRevocationCuts(t *testing.T) {
	root, bad, good, owner, laptop := newTestKey(t), newTestKey(t), newTestKey(t), newTestKey(t), newTestKey(t)
	now := time.Unix(1_750_000_000, 0)
	ticket := testTicket(t, root, now.Add(time.Hour))
	id, state, a := testNode(t, ticket, now)
	ctx, cancel := context.WithCancel(context.Background())
	admit := func(from ed25519.PrivateKey, h stmt.Hello) peer.ID {
		t.Helper()
		b, err := stmt.EncodeHello(h)
		if err != nil {
			t.Fatal(err)
		}
		p := peerOf(stmt.KeyOf(from))
		if _, err := a.Admit(ctx, p, b); err != nil {
			t.Fatal(err)
		}
		return p
	}
	join := func(key ed25519.PrivateKey, role stmt.Role) []byte {
		t.Helper()
		raw, err := ticket.Join(stmt.KeyOf(key), role, now)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	session, err := stmt.SignSession(owner, id.network(), stmt.SessionBody{Client: stmt.KeyOf(laptop), Server: id.self(), Expires: now.Add(time.Hour).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	// A phone speaks for the owner once it is listed, and not after it was removed.
	phone, phoneID := newKey(t), peer.ID("")
	pen, err := crdt.NewAuthor(owner, id.network(), nil)
	if err != nil {
		t.Fatal(err)
	}
	say := func(raws [][]byte, err error) {
		t.Helper()
		if err == nil {
			_, err = state.Submit(ctx, raws...)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	phoneHello := func(client ed25519.PrivateKey) stmt.Hello {
		t.Helper()
		raw, err := stmt.SignSession(phone, id.network(), stmt.SessionBody{
			Client: stmt.KeyOf(client), Server: id.self(), Expires: now.Add(time.Hour).Unix(), Owner: stmt.KeyOf(owner),
		})
		if err != nil {
			t.Fatal(err)
		}
		return stmt.Hello{Session: raw}
	}
	refused := func(when string) {
		t.Helper()
		client := newKey(t)
		b, err := stmt.EncodeHello(phoneHello(client))
		if err != nil {
			t.Fatal(err)
		}
		p := peerOf(stmt.KeyOf(client))
		if _, err := a.Admit(ctx, p, b); err == nil || !a.owner(p).IsZero() {
			t.Errorf("a device is let in %s", when)
		}
	}
	conns := &fakeConns{dropped: make(chan peer.ID, 10)}
	badID, goodID := admit(bad, stmt.Hello{Member: join(bad, stmt.RoleNode)}), admit(good, stmt.Hello{Member: join(good, stmt.RoleNode)})
	clientID := admit(laptop, stmt.Hello{Member: join(owner, stmt.RoleOwner), Session: session})
	refused("that nobody has listed")
	say(pen.SetDevice(crdt.Device{Key: stmt.KeyOf(phone)}))
	client := newKey(t)
	phoneID = admit(client, phoneHello(client))
	if got := a.owner(phoneID); got != stmt.KeyOf(owner) {
		t.Fatalf("the device speaks for %s", got)
	}
	for _, p := range []peer.ID{badID, goodID, clientID, phoneID} {
		conns.open = append(conns.open, p2p.PeerInfo{ID: p})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.enforce(ctx, state.Watch(ctx), conns, slog.New(slog.DiscardHandler))
	}()
	revoke := func(key ed25519.PrivateKey) {
		t.Helper()
		raw, err := stmt.SignMember(root, id.network(), stmt.MemberBody{Key: stmt.KeyOf(key), Revoked: true}, nil, 0, 0)
		if err == nil {
			_, err = state.Submit(ctx, raw)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		revoke func()
		cut    peer.ID
	}{
		{func() { revoke(bad) }, badID},
		{func() { say(pen.RemoveDevice(stmt.KeyOf(phone))) }, phoneID},
		{func() { refused("that was removed"); revoke(owner) }, clientID},
	} {
		tt.revoke()
		select {
		case p := <-conns.dropped:
			if p != tt.cut {
				t.Fatalf("%s is cut, want %s", p, tt.cut)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a revoked peer stays")
		}
	}
	cancel()
	<-done
	if len(conns.open) != 1 || conns.open[0].ID != goodID {
		t.Errorf("left: %v", conns.open)
	}
}
