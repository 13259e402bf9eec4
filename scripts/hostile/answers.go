package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// answerAttacks are on nodes that ask.
var answerAttacks = []attack{
	{name: "ae-endless-wants", idle: true, reason: "protocol", strike: answering(aeLies, func(l *liar, s network.Stream) {
		want := make([][]byte, 3000)
		for i := range want {
			want[i] = make([]byte, 16)
		}
		endless(s, aeFrame(map[string]any{"w": want, "m": true}))
	})},
	{name: "ae-endless-nothing", idle: true, reason: "protocol", strike: answering(aeLies, func(_ *liar, s network.Stream) {
		endless(s, aeFrame(map[string]any{"m": true}))
	})},
	{name: "ae-forged-snapshot", idle: true, reason: "protocol", strike: answering(aeLies, func(l *liar, s network.Stream) {
		var raws [][]byte
		for i := range 64 {
			raws = append(raws, flip(l.node(1, i)))
		}
		endless(s, aeFrame(map[string]any{"r": raws, "m": true}))
	})},
	{name: "ae-silent", idle: true, strike: answering(aeLies, func(_ *liar, s network.Stream) { _, _ = io.Copy(io.Discard, s) })},
	{name: "ae-trickle", idle: true, strike: answering(nil, slowly)},

	{name: "fetch-other-bytes", role: asClient, reason: "blocks", offence: true, strike: fetched(func(_ *liar, s network.Stream) {
		b := random(200)
		_, _ = s.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)) // the node goes away at once
	})},
	{name: "fetch-length", role: asClient, reason: "blocks", offence: true, strike: fetched(func(_ *liar, s network.Stream) {
		_, _ = s.Write([]byte{0xff, 0xff, 0xff, 0xff}) // as above
	})},
	{name: "fetch-nothing", role: asClient, idle: true, strike: fetched(func(_ *liar, s network.Stream) {
		_, _ = s.Write(make([]byte, 4)) // as above
	})},
	{name: "fetch-trickle", role: asClient, idle: true, strike: fetched(slowly)},
}

// aeFrame is a frame of anti-entropy.
func aeFrame(fields map[string]any) []byte {
	b, err := stmt.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// aeLies opens an answer: so much is held here that all of it should be asked for.
var aeLies = aeFrame(map[string]any{"n": math.MaxInt64, "h": make([]byte, 32)})

// endless writes the same until nobody takes it any more.
func endless(s network.Stream, b []byte) {
	for {
		if _, err := s.Write(b); err != nil {
			return
		}
	}
}

// slowly writes a space now and then.
func slowly(_ *liar, s network.Stream) {
	for {
		if _, err := s.Write([]byte(" ")); err != nil {
			return
		}
		<-time.After(200 * time.Millisecond)
	}
}

// answering waits until a node begins sessions, and answers them so.
func answering(first []byte, then func(*liar, network.Stream)) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) int {
		return l.answer(ctx, "ae/1", to, func(s network.Stream) {
			if _, err := s.Write(first); err == nil {
				then(l, s)
			}
		}, func(n *atomic.Int64) { // who is new is asked three times in some seconds
			for ctx.Err() == nil && n.Load() < 3 {
				wait(ctx, 50*time.Millisecond)
			}
		})
	}
}

// answer serves streams of one peer while work lasts, and counts them.
func (l *liar) answer(ctx context.Context, name string, to peer.ID, serve func(network.Stream), work func(n *atomic.Int64)) int {
	var n atomic.Int64
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	l.serve[to] = func(s network.Stream) {
		n.Add(1)
		defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
		serve(s)
	}
	l.mu.Unlock()
	l.host.SetStreamHandler(l.proto(name), func(s network.Stream) {
		defer s.Close()
		l.mu.Lock()
		serve := l.serve[s.Conn().RemotePeer()]
		l.mu.Unlock()
		if serve != nil {
			serve(s)
		}
	})
	work(&n)
	l.mu.Lock()
	delete(l.serve, to)
	l.mu.Unlock()
	return int(n.Load())
}

// fetched has a node fetch packs from the liar, and answers what it asks so.
func fetched(then func(*liar, network.Stream)) func(context.Context, *liar, int, peer.ID) int {
	return func(ctx context.Context, l *liar, _ int, to peer.ID) int {
		serve := func(s network.Stream) {
			var head [5]byte
			if _, err := io.ReadFull(s, head[:]); err == nil {
				then(l, s)
			}
		}
		return l.answer(ctx, "bulk/1", to, serve, func(*atomic.Int64) {
			ctx, cancel := context.WithTimeout(ctx, 12*time.Second)
			defer cancel()
			for range enough {
				if _, err := l.call(ctx, to, http.MethodPost, fmt.Sprintf("/v1/packs/%s/fetch", aCID()), "{}"); err != nil {
					return
				}
			}
		})
	}
}
