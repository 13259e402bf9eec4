package main

import (
	"context"
	"crypto/ed25519"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

const batch = 64 // statements of one message

// floodRegisters writes its own register thousands of times.
func floodRegisters(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for seq := 1; seq < 2000; {
		var raws [][]byte
		for range batch {
			raws = append(raws, l.node(1, seq))
			seq++
		}
		if l.say(ctx, to, raws...) != nil {
			return sent
		}
		sent += batch
	}
	return sent
}

// floodClaims claims thousands of instances that do not exist.
func floodClaims(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for range 2000 / batch {
		if l.say(ctx, to, l.claims(uint64(sent+1), batch)...) != nil {
			return sent
		}
		sent += batch
	}
	return sent
}

// floodOwners admits owners by the hundred with the ticket's invite, each with
// instances.
func floodOwners(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	const owners, instances = 60, 8
	for range owners {
		key := newKey()
		admit, err := l.ticket.Join(stmt.KeyOf(key), stmt.RoleOwner, time.Now())
		if err != nil {
			panic(err)
		}
		raws := [][]byte{admit}
		for ctr := range instances {
			raws = append(raws, instance(l.net, key, uint64(ctr))...)
		}
		if l.say(ctx, to, raws...) != nil {
			return sent
		}
		sent += len(raws)
	}
	return sent
}

// instance is a listed document of an owner.
func instance(net stmt.NetworkID, key ed25519.PrivateKey, ctr uint64) [][]byte {
	owner := stmt.KeyOf(key)
	id := instanceID(owner, owner, ctr)
	page, err := stmt.Marshal(map[string]any{"live": [][]byte{id[:]}})
	if err != nil {
		panic(err)
	}
	spec, err := stmt.Marshal(map[string]any{
		"dev": owner[:], "ctr": ctr, "act": make([]byte, 16), "ops": map[string]any{"name": "junk", "gen": 1, "replicas": 0, "env/X": string(make([]byte, 1024))},
	})
	if err != nil {
		panic(err)
	}
	return [][]byte{
		signBy(key, net, stmt.Statement{Kind: stmt.KindOwner, Seq: ctr, Body: page}),
		signBy(key, net, stmt.Statement{Kind: stmt.KindSpec, Epoch: 1, Seq: 1, Body: spec}),
	}
}

// floodSessions opens one session of anti-entropy after the other.
func floodSessions(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for i := range 200 {
		s, err := l.stream(ctx, to, "ae/1")
		if err != nil {
			return sent
		}
		if _, err := s.Write([]byte{0}); err != nil || s.CloseWrite() != nil {
			return sent
		}
		sent++
		if i%20 == 19 { // not to be gone before the node has looked
			_, _ = io.Copy(io.Discard, s)
		}
	}
	return sent
}

// slowSessions holds sessions open, a byte now and then.
func slowSessions(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for range 32 {
		s, err := l.stream(ctx, to, "ae/1")
		if err != nil {
			return sent
		}
		if _, err := s.Write([]byte{0, 0, 0xff}); err == nil {
			sent++
		}
	}
	wait(ctx, 3*time.Second) // meanwhile others want sessions
	return sent
}

// wait lets time go by.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// floodStreams opens streams of every protocol, and says nothing on them.
func floodStreams(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for _, name := range []string{"hello/1", "ae/1", "probe/1", "probe-via/1", "api/1", "proxy/1", "exec/1"} {
		for range 300 {
			s, err := l.stream(ctx, to, name)
			if err == nil {
				_, err = s.Write([]byte{0}) // until then the node does not hear of it
			}
			if err == nil {
				sent++
			}
			if ctx.Err() != nil {
				return sent
			}
		}
	}
	return sent
}
