package exchange

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap/message"
	pb "github.com/ipfs/boxo/bitswap/message/pb"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multihash"
	"pgregory.net/rapid"
)

func TestDescribeHaveRead(t *testing.T) {
	server, client := newPeer(t), newPeer(t)
	connectTo(t, client, server)
	leaves := noiseLeaves(2, 20, 1000)
	leaves[7] = nil
	entry := server.source.put(leaves)
	st, err := client.Bulk(t.Context(), server.host.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()

	var got []string
	maps, others, err := st.Describe(t.Context(), entry, func(data []byte) (bool, error) {
		got = append(got, string(data))
		return len(got) == 3, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{"root", "signature", "node"}) {
		t.Errorf("described as %q", got)
	}
	want := []byte{0b01111111, 0xff, 0b1111}
	if len(maps) != 1 || !bytes.Equal(maps[0], want) || len(others) != 0 {
		t.Errorf("have after describe: %x, %v", maps, others)
	}
	maps, _, err = st.Have(t.Context(), []cid.Cid{testCID([]byte("unknown")), entry})
	if err != nil {
		t.Fatal(err)
	}
	if len(maps) != 2 || maps[0] != nil || !bytes.Equal(maps[1], want) {
		t.Errorf("have: %x", maps)
	}
	if n := readAll(t, st, entry, leaves, 6); n != len(leaves) {
		t.Errorf("read %d leaves", n)
	}
	stats, err := server.Stats()
	if err != nil || stats.BulkLeaves != 19 || stats.BulkSent != 19000 {
		t.Errorf("stats %+v, %v", stats, err)
	}
}

// Fetchers of one entry learn of each other from whoever they ask.
func TestFetchersAreToldOfEachOther(t *testing.T) {
	server, a, b := newPeer(t), newPeer(t), newPeer(t)
	connectTo(t, a, server)
	connectTo(t, b, server)
	entry := server.source.put(noiseLeaves(3, 4, 10))
	ask := func(p *testPeer) []peer.ID {
		st, err := p.Bulk(t.Context(), server.host.ID())
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		_, others, err := st.Have(t.Context(), []cid.Cid{entry})
		if err != nil {
			t.Fatal(err)
		}
		return others
	}
	if o := ask(a); len(o) != 0 {
		t.Errorf("the first is told of %v", o)
	}
	if o := ask(b); !slices.Equal(o, []peer.ID{a.host.ID()}) {
		t.Errorf("the second is told of %v", o)
	}
	// And can reach it by the addresses that came along.
	st, err := b.Bulk(t.Context(), a.host.ID())
	if err != nil {
		t.Fatal(err)
	}
	st.Close()
	if o := ask(a); !slices.Equal(o, []peer.ID{b.host.ID()}) {
		t.Errorf("asking again, the first is told of %v", o)
	}
}

// hostile answers bulk streams with whatever a test writes.
func hostile(t *testing.T, answer func(s network.Stream)) (client *testPeer, evil peer.ID) {
	t.Helper()
	h := newHost(t)
	h.SetStreamHandler(BulkProtocol(testNetwork), func(s network.Stream) {
		defer s.Close()
		if _, _, err := readRequest(s, nil); err != nil {
			return
		}
		answer(s)
	})
	client = newPeer(t)
	if err := client.host.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return client, h.ID()
}

func frame(n uint32, data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, n), data...)
}

func TestHostileAnswersEndTheStream(t *testing.T) {
	leaf := bytes.Repeat([]byte{1}, 1000)
	endless := func(s network.Stream) {
		for {
			if _, err := s.Write(frame(uint32(len(leaf)), leaf)); err != nil {
				return
			}
		}
	}
	for name, tt := range map[string]struct {
		answer func(s network.Stream)
		want   error
	}{
		"truncated frame":     {func(s network.Stream) { _, _ = s.Write(frame(1000, leaf[:10])) }, io.ErrUnexpectedEOF},
		"longer than asked":   {func(s network.Stream) { _, _ = s.Write(frame(1001, append(leaf, 1))) }, ErrProtocol},
		"shorter than asked":  {func(s network.Stream) { _, _ = s.Write(frame(999, leaf[:999])) }, ErrProtocol},
		"as long as can be":   {func(s network.Stream) { _, _ = s.Write(frame(^uint32(0), leaf)) }, ErrProtocol},
		"nothing":             {func(s network.Stream) {}, io.ErrUnexpectedEOF},
		"silence":             {func(s network.Stream) { _, _ = io.Copy(io.Discard, s) }, ErrStalled},
		"stops in the middle": {func(s network.Stream) { _, _ = s.Write(frame(1000, leaf[:500])); _, _ = io.Copy(io.Discard, s) }, ErrStalled},
		"reset":               {func(s network.Stream) { _ = s.Reset() }, network.ErrReset},
		"endless":             {endless, nil}, // what was asked is read, the rest refused by closing
	} {
		t.Run("read/"+name, func(t *testing.T) {
			client, evil := hostile(t, tt.answer)
			st, err := client.Bulk(t.Context(), evil)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			asked, got := false, 0
			err = st.Read(t.Context(), func(context.Context) (cid.Cid, int, int, bool) {
				first := !asked
				asked = true
				return testCID(leaf), 0, 5, first
			}, func() []byte { return make([]byte, 1000) }, func([]byte) error { got++; return nil })
			if !errors.Is(err, tt.want) || got > 5 {
				t.Errorf("%d leaves, then %v; want %v", got, err, tt.want)
			}
		})
	}
	for name, answer := range map[string]func(s network.Stream){
		"endless blocks": endless,
		"frame too long": func(s network.Stream) { _, _ = s.Write(frame(maxFrame+1, leaf)) },
		"block too many": func(s network.Stream) {
			for range 3 {
				_, _ = s.Write(frame(1000, leaf))
			}
		},
		"nonsense after it": func(s network.Stream) {
			for range 2 {
				_, _ = s.Write(frame(1000, leaf))
			}
			_, _ = s.Write(frame(0, nil))
			_, _ = s.Write(frame(1000, leaf))
		},
		"bitmaps too long": func(s network.Stream) {
			for range 2 {
				_, _ = s.Write(frame(1000, leaf))
			}
			_, _ = s.Write(frame(0, nil))
			_, _ = s.Write(frame(maxHave+1, leaf))
		},
	} {
		t.Run("describe/"+name, func(t *testing.T) {
			client, evil := hostile(t, answer)
			st, err := client.Bulk(t.Context(), evil)
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			got := 0
			_, _, err = st.Describe(t.Context(), testCID(leaf), func([]byte) (bool, error) { got++; return got == 2, nil })
			if !errors.Is(err, ErrProtocol) || got > 2 {
				t.Errorf("%d blocks, then %v", got, err)
			}
		})
	}
}

// A client that breaks the protocol, asks for too much or takes nothing costs the
// server one stream.
func TestHostileRequests(t *testing.T) {
	server := newPeer(t)
	entry := server.source.put(noiseLeaves(4, 3, 100))
	good := encodeRead(entry, 0, 3)
	tooMany := encodeRead(entry, 0, maxRun+1)
	for name, request := range map[string][]byte{
		"unknown op":        appendRequest(nil, 99, nil),
		"too long":          binary.BigEndian.AppendUint32([]byte{opRead}, maxRequest+1),
		"no CID":            appendRequest(nil, opRead, []byte{200}),
		"too many leaves":   appendRequest(nil, opRead, tooMany),
		"no leaves":         appendRequest(nil, opRead, encodeRead(entry, 0, 0)),
		"short":             appendRequest(nil, opRead, good[:len(good)-1]),
		"too many entries":  appendRequest(nil, opHave, binary.BigEndian.AppendUint16(nil, maxEntries+1)),
		"entries cut short": appendRequest(nil, opHave, encodeEntries([]cid.Cid{entry, entry})[:50]),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if err := h.Connect(t.Context(), peer.AddrInfo{ID: server.host.ID(), Addrs: server.host.Addrs()}); err != nil {
				t.Fatal(err)
			}
			s, err := h.NewStream(t.Context(), server.host.ID(), BulkProtocol(testNetwork))
			if err != nil {
				t.Fatal(err)
			}
			if err := s.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write(request); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(s); !errors.Is(err, network.ErrReset) {
				t.Errorf("stream ended with %v", err)
			}
		})
	}
}

// A peer that breaks the protocol, as server or client, over the bulk stream or
// bitswap, is named; one that is merely absent or slow is not.
func TestWhoBreaksTheProtocolIsNamed(t *testing.T) {
	broke := make(chan peer.ID, 16)
	server, evil := newPeer(t, func(p peer.ID, err error) {
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s is named for %v", p, err)
		}
		broke <- p
	}), newHost(t)
	if err := evil.Connect(t.Context(), peer.AddrInfo{ID: server.host.ID(), Addrs: server.host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	send := func(pid protocol.ID, b []byte) {
		t.Helper()
		s, err := evil.NewStream(t.Context(), server.host.ID(), pid)
		if err == nil {
			_, err = s.Write(b)
		}
		if err != nil {
			t.Fatal(err)
		}
		if p := <-broke; p != evil.ID() {
			t.Errorf("%s is named", p)
		}
		_ = s.Reset()
	}
	send(BulkProtocol(testNetwork), appendRequest(nil, 99, nil))

	evil.SetStreamHandler(BulkProtocol(testNetwork), func(s network.Stream) {
		_, _ = s.Write(frame(maxFrame+1, nil))
	})
	st, err := server.Bulk(t.Context(), evil.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if _, _, err := st.Describe(t.Context(), testCID(nil), nil); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	if p := <-broke; p != evil.ID() {
		t.Errorf("%s is named", p)
	}
	if len(broke) != 0 {
		t.Errorf("%d more are named", len(broke))
	}
}

// Wants that no honest peer has are told of; others are not.
func TestHostileWants(t *testing.T) {
	named := 0
	w := watcher{func(p peer.ID, err error) {
		if p != "evil" || !errors.Is(err, ErrProtocol) {
			t.Errorf("%s is named for %v", p, err)
		}
		named++
	}}
	want := func(cids ...cid.Cid) message.BitSwapMessage {
		m := message.New(true)
		for _, c := range cids {
			m.AddEntry(c, 1, pb.Message_Wantlist_Block, false)
		}
		return m
	}
	many := func(n int) (out []cid.Cid) {
		for i := range n {
			out = append(out, testCID(binary.BigEndian.AppendUint32(nil, uint32(i))))
		}
		return out
	}
	identity, err := multihash.Sum([]byte("its own block"), multihash.IDENTITY, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		m    message.BitSwapMessage
		want int
	}{
		{want(), 0}, {want(many(maxQueuedWants)...), 0}, {want(many(maxQueuedWants + 1)...), 1},
		{want(testCID(nil), cid.NewCidV1(cid.Raw, identity)), 1},
	} {
		named = 0
		if w.MessageReceived("evil", tt.m); named != tt.want {
			t.Errorf("%d wants: named %d times", len(tt.m.Wantlist()), named)
		}
	}
}

func TestRecentIsBounded(t *testing.T) {
	var r recent
	now := time.Now()
	for i := range 10 * recentEntries {
		r.ask([]cid.Cid{testCID(binary.BigEndian.AppendUint32(nil, uint32(i)))}, "p", now, true)
	}
	if len(r.by) > recentEntries {
		t.Errorf("%d entries remembered", len(r.by))
	}
	c := testCID(nil)
	if r.ask([]cid.Cid{c}, "a", now, false); len(r.ask([]cid.Cid{c}, "b", now, false)) != 0 {
		t.Error("an unknown entry was remembered")
	}
	later := now.Add(2 * recentTime)
	r.ask([]cid.Cid{c}, "a", later, true)
	for i := range 10 * recentPeers {
		r.ask([]cid.Cid{c}, peer.ID(binary.BigEndian.AppendUint32(nil, uint32(i))), later, true)
	}
	if o := r.ask([]cid.Cid{c}, "z", later, true); len(o) != maxOthers {
		t.Errorf("told of %d peers", len(o))
	}
	if o := r.ask([]cid.Cid{c}, "z", later.Add(2*recentTime), true); len(o) != 0 {
		t.Errorf("told of %d peers that have gone", len(o))
	}
}

func TestHaveAnswerRoundTrip(t *testing.T) {
	addr := ma.StringCast("/ip4/127.0.0.1/tcp/1")
	rapid.Check(t, func(t *rapid.T) {
		maps := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 40), 0, maxEntries).Draw(t, "bitmaps")
		for i := range maps {
			if rapid.Bool().Draw(t, "absent") {
				maps[i] = nil
			}
		}
		var others []peer.AddrInfo
		for range rapid.IntRange(0, maxOthers).Draw(t, "others") {
			id := peer.ID(append([]byte{0, 4}, rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "id")...))
			others = append(others, peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{addr}})
		}
		gotMaps, gotOthers, err := decodeHave(encodeHave(maps, others), len(maps))
		if err != nil {
			t.Fatal(err)
		}
		for i := range maps {
			if !bytes.Equal(maps[i], gotMaps[i]) || (maps[i] == nil) != (gotMaps[i] == nil) {
				t.Fatalf("bitmap %d: %x became %x", i, maps[i], gotMaps[i])
			}
		}
		if len(gotOthers) != len(others) {
			t.Fatalf("%d others became %d", len(others), len(gotOthers))
		}
		for i := range others {
			if gotOthers[i].ID != others[i].ID || !gotOthers[i].Addrs[0].Equal(addr) {
				t.Fatalf("%v became %v", others[i], gotOthers[i])
			}
		}
	})
}

func FuzzDecodeHave(f *testing.F) {
	f.Add(encodeHave([][]byte{{1}, nil}, nil))
	f.Add(encodeHave(nil, []peer.AddrInfo{{ID: peer.ID([]byte{0, 1, 7}), Addrs: []ma.Multiaddr{ma.StringCast("/ip4/1.2.3.4/tcp/5")}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		maps, others, err := decodeHave(b, maxEntries)
		if err != nil {
			return
		}
		if again := encodeHave(maps, others); !bytes.Equal(again, b) {
			t.Errorf("%x decodes to what encodes as %x", b, again)
		}
	})
}

func FuzzDecodeRequests(f *testing.F) {
	c := testCID([]byte("x"))
	f.Add(encodeRead(c, 3, 7))
	f.Add(encodeEntries([]cid.Cid{c, c}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if entry, first, count, err := decodeRead(b); err == nil && !bytes.Equal(encodeRead(entry, first, count), b) {
			t.Errorf("read request %x is not canonical", b)
		}
		if entries, err := decodeEntries(b); err == nil && !bytes.Equal(encodeEntries(entries), b) {
			t.Errorf("have request %x is not canonical", b)
		}
	})
}

// Whatever a client asks, reading it is bounded.
func FuzzReadRequest(f *testing.F) {
	f.Add(appendRequest(nil, opRead, encodeRead(testCID([]byte("x")), 3, 7)))
	f.Add([]byte{opHave, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{opDescribe, 0, 0, 0, 9, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		op, payload, err := readRequest(bytes.NewReader(b), nil)
		if err != nil {
			return
		}
		if len(payload) > maxRequest || !bytes.HasPrefix(b, appendRequest(nil, op, payload)) {
			t.Errorf("%x reads as %d %x", b, op, payload)
		}
	})
}
