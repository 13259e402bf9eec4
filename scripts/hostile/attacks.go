package main

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"strings"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// enough is how often an offence is repeated: no node puts up with so many.
const enough = 20

// attack is one way to do harm.
type attack struct {
	name    string
	role    role
	reason  string
	offence bool
	idle    bool            // it takes time and little else, and is made beside the others
	freezes bool            // the liar's own instance
	needs   func(prey) bool // what must be known of the network; nil: nothing
	// strike attacks the n-th node until that cuts it off or there is no more to
	// do, and returns how much it got rid of. nil: the hello is the attack.
	strike func(ctx context.Context, l *liar, n int, to peer.ID) (sent int)
}

var stateAttacks = []attack{
	{name: "stranger", role: asStranger, reason: "stranger"},
	{name: "forged-admission", role: asForger, reason: "signature"},
	{name: "anothers-admission", role: asImpostor, reason: "stranger"},
	{name: "no-hello", role: asBabbler, reason: "shape"},
	{name: "revoked", role: asRevoked, reason: "stranger"},
	{name: "anothers-session", role: asThief, reason: "authority"},
	{name: "session-for-another", role: asElsewhere, reason: "authority"},
	{name: "session-over", role: asLate, reason: "expired"},
	{name: "session-without-end", role: asEternal, reason: "authority"},
	{name: "no-device", role: asDevice, reason: "stranger"},

	{name: "forged", reason: "signature", offence: true, strike: each(func(l *liar, i int) []byte { return flip(l.node(1, i)) })},
	{name: "anothers-register", reason: "signature", offence: true, strike: anothersRegister},
	{name: "other-network", reason: "network", offence: true, strike: each(func(l *liar, i int) []byte {
		return l.sign(stmt.Statement{Kind: stmt.KindNode, Network: stmt.NewNetworkID("elsewhere", l.ticket.Root), Seq: uint64(i), Body: empty})
	})},
	{name: "large-statement", reason: "size", offence: true, strike: each(func(_ *liar, i int) []byte { return bytes.Repeat([]byte{byte(i)}, stmt.MaxStatement+1) })},
	{name: "large-message", reason: "size", offence: true, strike: messages(func(_ *liar, i int) []byte { return bytes.Repeat([]byte{byte(i)}, 64<<10+1) })},
	{name: "deflated", reason: "shape", offence: true, strike: each(deflated)},
	{name: "nested", reason: "shape", offence: true, strike: each(func(_ *liar, i int) []byte { return append(bytes.Repeat([]byte{0x81}, 4000), byte(i)) })},
	{name: "not-canonical", reason: "shape", offence: true, strike: messages(notCanonical)},
	{name: "no-message", reason: "shape", offence: true, strike: messages(func(_ *liar, i int) []byte { return []byte{0x80, byte(i)} })},
	{name: "self-made-root", reason: "authority", strike: each(selfMadeRoot)},
	{name: "ae-length", reason: "protocol", offence: true, strike: opening("ae/1", binary.BigEndian.AppendUint32(nil, math.MaxUint32))},
	{name: "ae-garbage", reason: "protocol", offence: true, strike: opening("ae/1", append(binary.BigEndian.AppendUint32(nil, 4), "\xff\xff\xff\xff"...))},

	{name: "future", strike: future},
	{name: "equivocation", strike: equivocation},
	{name: "replay", reason: "stale", strike: replay},
	{name: "flood-registers", reason: "rate", strike: floodRegisters},
	{name: "flood-claims", reason: "rate", strike: floodClaims},
	{name: "flood-owners", strike: floodOwners},
	{name: "flood-sessions", reason: "rate", strike: floodSessions},
	{name: "slow-sessions", strike: slowSessions},
	{name: "flood-streams", reason: "rate", strike: floodStreams},
}

var empty = []byte{0xa0}

// each repeats an offence, one statement a message.
func each(make func(l *liar, i int) []byte) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) int {
		for i := range enough {
			if l.say(ctx, to, make(l, i+1)) != nil {
				return i
			}
		}
		return enough
	}
}

// messages repeats an offence that is the message itself.
func messages(make func(l *liar, i int) []byte) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) int {
		for i := range enough {
			if l.publish(ctx, to, make(l, i)) != nil {
				return i
			}
		}
		return enough
	}
}

// node is a register of the liar's own.
func (l *liar) node(epoch uint64, seq int) []byte {
	body, err := stmt.Marshal(map[string]any{"version": "hostile", "cpus": 1})
	if err != nil {
		panic(err)
	}
	return l.sign(stmt.Statement{Kind: stmt.KindNode, Epoch: epoch, Seq: uint64(seq), Body: body})
}

// anothersRegister writes in the name of the node it talks to.
func anothersRegister(ctx context.Context, l *liar, n int, to peer.ID) int {
	victim, err := stmt.KeyOfPeerID(string(to))
	if err != nil {
		return 0
	}
	return each(func(l *liar, i int) []byte {
		p, err := stmt.Marshal(map[string]any{
			"k": "node", "n": l.net[:], "a": victim[:], "e": uint64(math.MaxUint64), "s": uint64(i), "b": map[string]any{"draining": true},
		})
		if err != nil {
			panic(err)
		}
		signed := append([]byte("formation/stmt/1\x00node\x00"), p...)
		raw, err := stmt.Marshal([][]byte{p, ed25519.Sign(l.key, signed)})
		if err != nil {
			panic(err)
		}
		return raw
	})(ctx, l, n, to)
}

// deflated hides megabytes in a statement's size, should anybody inflate it.
func deflated(_ *liar, i int) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestCompression)
	if err == nil {
		_, err = w.Write(bytes.Repeat([]byte{byte(i)}, 4<<20))
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

// notCanonical is a message in which a decoder may see more than was signed.
func notCanonical(l *liar, i int) []byte {
	raw := l.node(1, i+1)
	bstr := append(binary.BigEndian.AppendUint16([]byte{0x59}, uint16(len(raw))), raw...)
	list := append([]byte{0x81}, bstr...)
	switch i % 5 {
	case 0: // indefinite length
		return append(append([]byte("\xbf\x61r"), list...), 0xff)
	case 1: // a tag
		return append([]byte("\xa1\x61r\xd8\x18"), list...)
	case 2: // the same key twice
		return append(append([]byte("\xa2\x61r"), list...), append([]byte("\x61r"), list...)...)
	case 3: // a length that is longer than need be
		return append([]byte("\xb8\x01\x61r"), list...)
	default: // more than the value
		return append(append([]byte("\xa1\x61r"), list...), 0x00)
	}
}

// selfMadeRoot admits and revokes by a key that may not.
func selfMadeRoot(l *liar, i int) []byte {
	m := stmt.MemberBody{Key: l.self, Role: stmt.RoleOperator}
	if i%2 == 0 {
		m = stmt.MemberBody{Role: stmt.RoleOwner, AnyOwner: true, Revoked: true}
	}
	raw, err := stmt.SignMember(l.key, l.net, m, nil, uint64(i), uint64(i))
	if err != nil {
		panic(err)
	}
	return raw
}

// future writes the highest numbers there are, all of its own.
func future(ctx context.Context, l *liar, _ int, to peer.ID) int {
	body, err := stmt.Marshal(map[string]any{"version": "hostile", "mem": uint64(math.MaxUint64), "disk": uint64(math.MaxUint64), "cpus": math.MaxInt64})
	if err != nil {
		panic(err)
	}
	if l.say(ctx, to, l.sign(stmt.Statement{Kind: stmt.KindNode, Epoch: math.MaxUint64, Seq: math.MaxUint64, Time: stmt.MaxTime, Body: body})) != nil {
		return 0
	}
	claims := l.claims(math.MaxUint64, 16)
	if l.say(ctx, to, claims...) != nil {
		return 1
	}
	return 1 + len(claims)
}

// equivocation says one thing to one node and another to the next.
func equivocation(ctx context.Context, l *liar, n int, to peer.ID) int {
	for i := range enough {
		body, err := stmt.Marshal(map[string]any{"version": "hostile", "region": strings.Repeat("x", n+1)})
		if err != nil {
			panic(err)
		}
		if l.say(ctx, to, l.sign(stmt.Statement{Kind: stmt.KindNode, Epoch: 1, Seq: uint64(i + 1), Body: body})) != nil {
			return i
		}
	}
	return enough
}

// replay says old things again.
func replay(ctx context.Context, l *liar, _ int, to peer.ID) int {
	if l.say(ctx, to, l.node(9, 9)) != nil {
		return 0
	}
	for i := range 200 {
		if l.say(ctx, to, l.node(uint64(i%9), i)) != nil {
			return i
		}
	}
	return 200
}

// instanceID is that of docs/wire.md §4.
func instanceID(owner, device stmt.Key, ctr uint64) [20]byte {
	h := sha256.New()
	h.Write([]byte("formation/instance/1\x00"))
	h.Write(owner[:])
	h.Write(device[:])
	h.Write(binary.BigEndian.AppendUint64(nil, ctr))
	return [20]byte(h.Sum(nil)[:20])
}

// claims are n claims on instances that do not exist.
func (l *liar) claims(seq uint64, n int) (out [][]byte) {
	for i := range n {
		var inst [20]byte
		rand.Read(inst[:]) // never fails (crypto/rand)
		body, err := stmt.Marshal(map[string]any{
			"inst": inst[:], "slot": i % 64, "owner": l.self[:], "gen": uint64(math.MaxUint64), "phase": "running", "ready": true,
		})
		if err != nil {
			panic(err)
		}
		out = append(out, l.sign(stmt.Statement{Kind: stmt.KindClaim, Epoch: 1, Seq: seq, Body: body}))
	}
	return out
}
