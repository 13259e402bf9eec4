package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"math"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"
)

// blockAttacks are on the exchange of blocks, by who asks.
var blockAttacks = []attack{
	{name: "bulk-no-operation", reason: "blocks", offence: true, strike: opening("bulk/1", bulk(99, nil))},
	{name: "bulk-length", reason: "blocks", offence: true, strike: opening("bulk/1", binary.BigEndian.AppendUint32([]byte{1}, math.MaxUint32))},
	{name: "bulk-no-cid", reason: "blocks", offence: true, strike: opening("bulk/1", bulk(1, nil))},
	{name: "bulk-many-leaves", reason: "blocks", offence: true, strike: opening("bulk/1", bulk(3, append(named(aCID()), bytes.Repeat([]byte{0x7f}, 8)...)))},
	{name: "bulk-many-entries", reason: "blocks", offence: true, strike: opening("bulk/1", bulk(2, []byte{0xff, 0xff}))},
	{name: "bulk-identity", strike: bulkIdentity},
	{name: "bulk-trickle", reason: "rate", strike: bulkTrickle},
	{name: "bitswap-wants", reason: "blocks", offence: true, strike: wanting(manyWants)},
	{name: "bitswap-identity", reason: "blocks", strike: wanting(func(m message.BitSwapMessage) {
		m.AddEntry(identityCID(), 1, pb.Message_Wantlist_Block, true)
	})},
	{name: "bitswap-unasked", strike: wanting(func(m message.BitSwapMessage) {
		for i := range 8 {
			m.AddBlock(blocks.NewBlock(bytes.Repeat([]byte{byte(i)}, 128<<10)))
		}
	})},
}

// bulk is one request of the bulk stream.
func bulk(op byte, payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{op}, uint32(len(payload))), payload...)
}

// named is a CID as the bulk stream has it.
func named(c cid.Cid) []byte { return append([]byte{byte(c.ByteLen())}, c.Bytes()...) }

// aCID names what nobody has.
func aCID() cid.Cid { return hashed(multihash.SHA2_256, random(32)) }

func identityCID() cid.Cid { return hashed(multihash.IDENTITY, random(32)) }

func hashed(kind uint64, data []byte) cid.Cid {
	h, err := multihash.Sum(data, kind, -1)
	if err != nil {
		panic(err) // a mistake in this program
	}
	return cid.NewCidV1(cid.Raw, h)
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand)
	return b
}

// opening opens streams of a protocol with these bytes, one after the other.
func opening(name string, first []byte) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
		for range enough {
			s, err := l.stream(ctx, to, name)
			if err == nil {
				_, err = s.Write(first)
			}
			if err != nil {
				return sent
			}
			sent++
			// A node may take one stream of a peer at a time.
			for b := make([]byte, 4096); err == nil; {
				_, err = s.Read(b)
			}
		}
		return sent
	}
}

// bulkIdentity asks for what CIDs hold themselves: nobody has it.
func bulkIdentity(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	s, err := l.stream(ctx, to, "bulk/1")
	if err != nil {
		return 0
	}
	for range 200 {
		if _, err := s.Write(bulk(1, named(identityCID()))); err != nil {
			return sent
		}
		sent++
	}
	if s.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, s)
	}
	return sent
}

// bulkTrickle holds more streams than there are for one peer, each with a request
// that does not end.
func bulkTrickle(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
	for range 64 {
		s, err := l.stream(ctx, to, "bulk/1")
		if err != nil {
			return sent
		}
		if _, err := s.Write([]byte{1, 0}); err == nil {
			sent++
		}
	}
	wait(ctx, time.Second) // meanwhile others want streams
	return sent
}

// wanting sends bitswap messages.
func wanting(fill func(message.BitSwapMessage)) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) (sent int) {
		pid := protocol.ID("/formd/" + l.net.String() + "/ipfs/bitswap/1.2.0")
		for range enough {
			s, err := l.open(ctx, to, pid)
			if err != nil {
				return sent
			}
			m := message.New(false)
			fill(m)
			if m.ToNetV1(s) != nil {
				return sent
			}
			sent++
			if s.CloseWrite() == nil {
				_, _ = io.Copy(io.Discard, s) // until the node has read it
			}
		}
		return sent
	}
}

func manyWants(m message.BitSwapMessage) {
	for range 5000 {
		m.AddEntry(aCID(), 1, pb.Message_Wantlist_Block, true)
	}
}
