package crdt

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// Everything that is refused is counted by its reason and told with the peer's
// name; only what no honest peer says is an offence.
func TestRefusals(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	var log bytes.Buffer
	offences := map[Reason]int{}
	from, stranger := peer.ID(pub("n2").PeerID()), peer.ID(pub("n9").PeerID())
	r, err := Open(ReplicaConfig{
		Dir: t.TempDir(), Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow },
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
		Offence: func(p peer.ID, reason Reason) {
			if p != from {
				t.Errorf("%s is blamed for %s", p, reason)
			}
			offences[reason]++
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Submit(ctx, w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode), w.node("n2", 5, 5, Node{})); err != nil {
		t.Fatal(err)
	}
	sign := func(key string, s stmt.Statement) []byte {
		t.Helper()
		if s.Network == (stmt.NetworkID{}) {
			s.Network = w.net
		}
		raw, err := stmt.Sign(keyOf(key), s)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	flip := func(raw []byte) []byte {
		raw = bytes.Clone(raw)
		raw[len(raw)-1] ^= 1
		return raw
	}
	member := func(key string, m stmt.MemberBody) []byte {
		t.Helper()
		raw, err := stmt.SignMember(keyOf(key), w.net, m, nil, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	node := stmt.Statement{Kind: stmt.KindNode, Epoch: 5, Seq: 6, Body: []byte{0xa0}}
	elsewhere, kind := node, node
	elsewhere.Network = stmt.NewNetworkID("elsewhere", w.root)
	kind.Kind = "gossip"
	old := node
	old.Seq = 1
	for _, tt := range []struct {
		name string
		from peer.ID
		raws [][]byte
		want Reason
	}{
		{"a forged register", from, [][]byte{flip(sign("n2", node))}, RefusedSignature},
		{"of another network", from, [][]byte{sign("n2", elsewhere)}, RefusedNetwork},
		{"too large", from, [][]byte{make([]byte, stmt.MaxStatement+1)}, RefusedSize},
		{"no statement", from, [][]byte{{0xa0}}, RefusedShape},
		{"nested", from, [][]byte{bytes.Repeat([]byte{0x81}, 1000)}, RefusedShape},
		{"an admission by a node", from, [][]byte{member("n2", stmt.MemberBody{Key: pub("n3"), Role: stmt.RoleNode})}, RefusedAuthority},
		{"a role of a later version", from, [][]byte{member("root", stmt.MemberBody{Key: pub("n3"), Role: "king"})}, RefusedInvalid},
		{"a kind of a later version", from, [][]byte{sign("n2", kind)}, RefusedInvalid},
		{"a register of a stranger", from, [][]byte{sign("n9", node)}, RefusedStranger},
		{"what is superseded", from, [][]byte{sign("n2", old)}, RefusedStale},
		{"from no member", stranger, [][]byte{sign("n2", node)}, RefusedSender},
	} {
		log.Reset()
		before := r.Stats()
		said := offences[tt.want]
		msg, err := encodeGossip(tt.raws)
		if err != nil {
			t.Fatal(err)
		}
		if r.validate(ctx, tt.from, msg) {
			t.Errorf("%s: passed on", tt.name)
		}
		after := r.Stats()
		if after.RefusedBy[tt.want] != before.RefusedBy[tt.want]+1 || after.Refused != before.Refused+1 {
			t.Errorf("%s: counted as %v, was %v", tt.name, after.RefusedBy, before.RefusedBy)
		}
		if got := offences[tt.want] - said; (got == 1) != tt.want.Offence() {
			t.Errorf("%s: %d offences", tt.name, got)
		}
		named := strings.Contains(log.String(), "peer="+tt.from.String()) && strings.Contains(log.String(), "reason="+tt.want.String())
		if named != (tt.want < RefusedFrozen) {
			t.Errorf("%s: the log says %q", tt.name, log.String())
		}
	}
	log.Reset()
	forged, err := encodeGossip([][]byte{flip(sign("n2", node))})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		r.validate(ctx, from, forged)
	}
	if n := strings.Count(log.String(), "\n"); n > tellBurst || offences[RefusedSignature] != 101 {
		t.Errorf("%d lines of log about %d offences", n, offences[RefusedSignature])
	}
}

// What one neighbour says of an author costs that author nothing when others say
// it, and a flood is cut before a signature is looked at.
func TestFloodsAreCut(t *testing.T) {
	w, ctx := newWorld(t), context.Background()
	r, err := Open(ReplicaConfig{Dir: t.TempDir(), Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, n := range []string{"n1", "n2", "n3"} {
		if _, err := r.Submit(ctx, w.admit(n, stmt.RoleNode)); err != nil {
			t.Fatal(err)
		}
	}
	send := func(from string, raws [][]byte) bool {
		msg, err := encodeGossip(raws)
		if err != nil {
			t.Fatal(err)
		}
		return r.validate(ctx, peer.ID(pub(from).PeerID()), msg)
	}
	var seq uint64
	batch := func(author string) (raws [][]byte) {
		for range maxGossipStmts {
			seq++
			raws = append(raws, w.node(author, 1, seq, Node{}))
		}
		return raws
	}
	for range 2 * pairBurst / maxGossipStmts {
		send("n3", batch("n2"))
	}
	st := r.Stats()
	if st.Applied > pairBurst+3 || st.RefusedBy[RefusedRate] == 0 {
		t.Errorf("%d applied, refused %v", st.Applied, st.RefusedBy)
	}
	if send("n2", [][]byte{w.node("n2", 1, seq+1, Node{Version: "own"})}); w.versionOf(r, "n2") != "own" {
		t.Error("the author itself is not heard any more")
	}
	const burst = 10 * maxGossipStmts
	r.limits.statements = newRates[peer.ID](1, burst)
	for range 20 { // of many authors
		raws := make([][]byte, maxGossipStmts)
		for i := range raws {
			seq++
			raws[i] = w.must(stmt.Sign(keyOf(fmtAuthor(seq)), stmt.Statement{Kind: stmt.KindNode, Network: w.net, Seq: 1, Body: []byte{0xa0}}))
		}
		send("n3", raws)
	}
	if n := r.Stats().RefusedBy[RefusedStranger]; n != burst {
		t.Errorf("%d statements of invented authors are looked at", n)
	}
}

func (w *world) versionOf(r *Replica, name string) string {
	n, _ := r.View().Node(pub(name))
	return n.Version
}

func fmtAuthor(n uint64) string {
	return "author " + string([]byte{byte(n >> 16), byte(n >> 8), byte(n)})
}
