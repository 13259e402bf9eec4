package main

import (
	"context"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// ownerAttacks are about instances.
var ownerAttacks = []attack{
	{name: "deleted-again", reason: "stale", needs: func(p prey) bool { return len(p.deleted) > 0 }, strike: deletedAgain},
	{name: "stolen-slots", needs: func(p prey) bool { return p.victim != "" }, strike: stolenSlots},
	{name: "two-specs", freezes: true, strike: twoSpecs},
}

// deletedAgain says again all that was ever said of a deleted instance, but that it
// is deleted.
func deletedAgain(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for range enough {
		if l.say(ctx, to, l.prey.deleted...) != nil {
			return sent
		}
		sent += len(l.prey.deleted)
	}
	return sent
}

// stolenSlots claims the slots of an instance that this node may not run, as if it
// ran them since ever.
func stolenSlots(ctx context.Context, l *liar, _ int, to peer.ID) int {
	id, err := crdt.ParseDocID(l.prey.victim)
	if err != nil {
		return 0
	}
	raws := [][]byte{l.node(1, 1)}
	for slot := range 4 {
		body, err := stmt.Marshal(map[string]any{
			"inst": id[:], "slot": slot, "owner": l.prey.owner[:], "gen": uint64(crdt.MaxGeneration), "specgen": uint64(1) << 40,
			"phase": "running", "ready": true, "started": 1, "readyat": 1,
		})
		if err != nil {
			panic(err)
		}
		raws = append(raws, l.sign(stmt.Statement{Kind: stmt.KindClaim, Epoch: 1, Seq: uint64(slot + 1), Body: body}))
	}
	if l.say(ctx, to, raws...) != nil {
		return 0
	}
	return len(raws)
}

// twoSpecs has an owner say one thing to one node and another to the next, under
// one number.
func twoSpecs(ctx context.Context, l *liar, n int, to peer.ID) int {
	admit, err := l.ticket.Join(stmt.KeyOf(l.owner), stmt.RoleOwner, l.began)
	if err != nil {
		panic(err)
	}
	raws := append([][]byte{admit}, instance(l.net, l.owner, 0)...)
	owner := stmt.KeyOf(l.owner)
	root, err := stmt.Verify(raws[len(raws)-1], l.net)
	if err != nil {
		panic(err)
	}
	id := root.ID
	body, err := stmt.Marshal(map[string]any{
		"dev": owner[:], "ctr": 0, "act": make([]byte, 16), "root": id[:], "ops": map[string]any{"restart": n + 1},
	})
	if err != nil {
		panic(err)
	}
	raws = append(raws, signBy(l.owner, l.net, stmt.Statement{Kind: stmt.KindSpec, Epoch: 1, Seq: 2, Deps: []stmt.ID{id}, Body: body}))
	if l.say(ctx, to, raws...) != nil {
		return 0
	}
	return len(raws)
}
