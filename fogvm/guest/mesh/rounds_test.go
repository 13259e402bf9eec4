package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/guest"
)

// history is what a host holds for its guest, as things happen.
func history(w *world) (states [][][]byte) {
	then := func() { states = append(states, w.host.MeshStatements(pub("olga"))) }
	then()
	w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("again"))})
	then()
	w.all(w.olga.SetDevice(crdt.Device{Key: pub("phone"), Name: "phone", MeshKey: meshKey("phone")}))
	then()
	w.claim("three", crdt.Claim{Slot: 1, Generation: 2, MeshKey: text(meshKey("guest-three"))})
	then()
	w.all(w.olga.RemoveDevice(pub("laptop")))
	then()
	id, raws, err := w.olga.Create(crdt.Spec{Name: "db", Replicas: 1})
	w.all(raws, err)
	w.claim("two", crdt.Claim{Instance: id, MeshKey: text(meshKey("guest-db"))})
	then()
	w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true})
	then()
	w.all(w.olga.Set(w.id, func(s *crdt.Spec) { s.Replicas = 1 }))
	then()
	w.all(w.olga.Delete(w.id))
	then()
	return states
}

// session is a guest that is told changes, and the stream to it.
type session struct {
	v      *Verifier
	teller guest.Teller
}

// round is one round over a stream that loses nothing, of the guest's side of which
// [Mesh] does the same.
func (s *session) round(t *rapid.T, all [][]byte) {
	host, agent := net.Pipe()
	done := make(chan error, 1)
	go func() {
		defer agent.Close()
		done <- func() error {
			for {
				n, err := guest.ReadNews(agent)
				if err != nil {
					return err
				}
				for _, g := range n.Gone {
					s.v.Gone(g)
				}
				for _, raw := range n.Statements {
					_ = s.v.Tell(raw) // a refusal is acknowledged
				}
				if !n.End {
					continue
				}
				s.v.End(n.Since)
				var m guest.MeshReport
				m.Sum, m.Again, m.All = s.v.Acknowledge()
				return guest.WriteMeshReport(agent, m)
			}
		}()
	}()
	_, err := s.teller.Round(host, guest.Named(all))
	if err := errors.Join(err, <-done, host.Close()); err != nil {
		t.Fatal(err)
	}
}

// A guest that is told what changes knows what one knows that is told all each
// time, whatever its host says and holds back, whatever of it cannot be taken yet,
// and after any loss of the stream. So no removal gets lost.
func TestChangesAgainstWholeRounds(t *testing.T) {
	w := newWorld(t)
	states := history(w)
	rapid.Check(t, func(t *rapid.T) {
		s, dumb := &session{v: NewVerifier(w.pin())}, NewVerifier(w.pin())
		if rapid.Bool().Draw(t, "few are remembered") {
			s.v.known = 5
		}
		for i := range rapid.IntRange(1, 7).Draw(t, "rounds") {
			s.v.most = rapid.SampledFrom([]int{MaxBytes, 3000, 2000}).Draw(t, "room") // as if things went
			dumb.most = s.v.most
			all := slices.Clone(rapid.SampledFrom(states).Draw(t, "state"))
			if rapid.IntRange(0, 2).Draw(t, "kept back") == 0 {
				all = slices.DeleteFunc(all, func([]byte) bool { return rapid.Bool().Draw(t, "this") })
			}
			if rapid.IntRange(0, 3).Draw(t, "out of order") == 0 {
				slices.Reverse(all)
			}
			switch rapid.IntRange(0, 5).Draw(t, "stream") {
			case 0: // it breaks, maybe within a round
				for _, raw := range all[:rapid.IntRange(0, len(all)).Draw(t, "heard")] {
					_ = s.v.Tell(raw)
					_ = dumb.Tell(raw)
				}
				s.teller = guest.Teller{}
				s.v.Begin()
				dumb.Begin()
			case 1:
				all = append(all, []byte("no statement"))
			}
			s.round(t, all)
			for _, raw := range all {
				_ = dumb.Tell(raw)
			}
			dumb.End(false)
			if s.v.known < maxTold {
				continue // it knows less claims of too many, and is judged by removals alone
			}
			if got, want := rendered(s.v.Parties()), rendered(dumb.Parties()); got != want {
				t.Fatalf("round %d: peers %s, told all %s", i, got, want)
			}
		}
		if got, want := sorted(s.v.Lasting()), sorted(dumb.Lasting()); !slices.Equal(got, want) {
			t.Fatalf("it holds %d statements that last, told all %d", len(got), len(want))
		}
	})
}

func sorted(raws [][]byte) (out []string) {
	for _, raw := range raws {
		out = append(out, string(raw))
	}
	slices.Sort(out)
	return out
}

// counted counts what is written and read.
type counted struct {
	net.Conn
	n atomic.Int64
}

func (c *counted) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return c.Conn.Write(b) }
func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// An unchanged round costs the same however much there is, and a change what it
// has in it.
func TestCostOfRounds(t *testing.T) {
	type cost struct{ all, same, claim, device, revoked int64 }
	measured := map[int]cost{}
	for _, instances := range []int{1, 8} {
		w := newWorld(t)
		var claims []crdt.Claim
		var ids []string
		for i := range instances {
			id, raws, err := w.olga.Create(crdt.Spec{Name: fmt.Sprint("big", i), Replicas: 32})
			w.all(raws, err)
			ids = append(ids, id)
			for slot := range 32 {
				claims = append(claims, crdt.Claim{Instance: id, Owner: pub("olga"), Slot: slot, Phase: crdt.ClaimRunning, MeshKey: text(meshKey(fmt.Sprint(i, "/", slot)))})
			}
		}
		if err := w.node["three"].SetClaims(context.Background(), claims); err != nil {
			t.Fatal(err)
		}
		for _, id := range ids {
			w.all(w.node["three"].ClaimStatements(id), nil)
		}
		b := boot(t, t.TempDir(), w.config())
		c := &counted{Conn: b.host}
		var teller guest.Teller
		peers := 0
		round := func() int64 {
			before := c.n.Load()
			m, err := teller.Round(c, guest.Named(w.host.MeshStatements(pub("olga"))))
			if err != nil || m.Refused != 0 || m.All || len(m.Again) > 0 {
				t.Fatalf("%+v, %v", m, err)
			}
			peers = m.Peers
			return c.n.Load() - before
		}
		var got cost
		got.all, got.same = round(), round()
		was := peers
		w.claim("two", crdt.Claim{Slot: 1, MeshKey: text(meshKey("again"))})
		got.claim = round()
		w.all(w.olga.RemoveDevice(pub("laptop")))
		got.device = round()
		w.member(stmt.MemberBody{Key: pub("two"), Role: stmt.RoleNode, Revoked: true})
		got.revoked = round()
		if peers != was-2 {
			t.Errorf("%d peers, of %d two are gone", peers, was)
		}
		measured[instances] = got
		t.Logf("%d claims: all %d bytes, nothing new %d, a claim %d, a device less %d, a node less %d",
			len(claims)+2, got.all, got.same, got.claim, got.device, got.revoked)
	}
	few, many := measured[1], measured[8]
	const numbers = 40 // more digits in a report and a clock
	if many.all < 4*few.all || many.same > few.same+numbers || many.claim > few.claim+numbers || many.revoked > few.revoked+numbers {
		t.Errorf("of eight times as much %+v, else %+v", many, few)
	}
	if few.same > 300 || few.claim > 2000 || few.revoked > 2000 {
		t.Errorf("%+v", few)
	}
}

// What has changed since nothing is no round.
func TestChangesOfNothing(t *testing.T) {
	w := newWorld(t)
	m := New(Config{})
	close(m.started)
	m.verifier = NewVerifier(w.pin())
	host, agent := net.Pipe()
	defer host.Close()
	heard := make(chan error, 1)
	go func() { heard <- m.Hear(t.Context(), agent) }()
	if err := guest.WriteNews(host, guest.News{End: true, Since: true}); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; !errors.Is(err, guest.ErrFrame) {
		t.Error(err)
	}
}
