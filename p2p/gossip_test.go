package p2p

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/proto"
)

// ear collects what a node hears on a topic, and accepts what ok says.
type ear struct {
	mu    sync.Mutex
	heard map[string]int
	from  map[string]peer.ID
}

func listenTo(t *testing.T, n *Node, topic string, ok func(msg string) bool) *ear {
	t.Helper()
	e := &ear{heard: make(map[string]int), from: make(map[string]peer.ID)}
	err := n.Subscribe(ctxLong(t), topic, func(_ context.Context, from peer.ID, msg []byte) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.heard[string(msg)]++
		e.from[string(msg)] = from
		return ok == nil || ok(string(msg))
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func ctxLong(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx
}

func (e *ear) times(msg string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard[msg]
}

// tell publishes fresh messages until one is heard by all: gossip is best
// effort, and a mesh takes a heartbeat to form.
func tell(t *testing.T, n *Node, topic, prefix string, ears ...*ear) {
	t.Helper()
	i := 0
	eventually(t, prefix+" is heard by all", func() bool {
		msg := fmt.Sprintf("%s %d", prefix, i)
		i++
		if err := n.Publish(ctxT(t), topic, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			all := true
			for _, e := range ears {
				all = all && e.times(msg) > 0
			}
			if all {
				return true
			}
		}
		return false
	})
}

// line makes a – b – c where a and c cannot reach each other.
func line(t *testing.T) (a, b, c *Node) {
	fw := newCut()
	a, b, c = walled(t, fw), walled(t, fw), walled(t, fw)
	fw.set(a, c)
	connect(t, a, b)
	connect(t, c, b)
	return a, b, c
}

func connect(t *testing.T, from, to *Node) {
	t.Helper()
	if _, err := from.Connect(ctxT(t), tcpAddr(t, to)); err != nil {
		t.Fatal(err)
	}
}

func TestValidatorStandsBeforeTheRelay(t *testing.T) {
	a, b, c := line(t)
	only := func(msg string) bool { return len(msg) < 4 || msg[:4] != "junk" }
	ea, eb, ec := listenTo(t, a, "news/1", nil), listenTo(t, b, "news/1", only), listenTo(t, c, "news/1", nil)
	tell(t, a, "news/1", "good", eb, ec)
	ec.mu.Lock()
	for msg, from := range ec.from {
		if from != b.ID() {
			t.Errorf("%q reached c from %v, want through b", msg, from)
		}
	}
	ec.mu.Unlock()
	// Junk reaches b, and stops there, although c follows the topic.
	if err := a.Publish(ctxT(t), "news/1", []byte("junk")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b hears the junk", func() bool { return eb.times("junk") > 0 })
	tell(t, a, "news/1", "more", eb, ec) // whatever was before it has arrived
	if ec.times("junk") != 0 {
		t.Error("junk was relayed")
	}
	if ea.times("junk") != 0 || ea.times("good 0") != 0 {
		t.Error("a node's own messages came back to its validator")
	}
	if eb.times("junk") != 1 {
		t.Errorf("the same bytes were shown %d times", eb.times("junk"))
	}
	if err := b.Subscribe(ctxT(t), "news/1", nil); !errors.Is(err, ErrSubscribed) {
		t.Errorf("second Subscribe: %v, want ErrSubscribed", err)
	}
}

func TestOversizeGossip(t *testing.T) {
	a, b, _ := line(t)
	eb := listenTo(t, b, "big/1", nil)
	listenTo(t, a, "big/1", nil)
	tell(t, a, "big/1", "small", eb)
	if err := a.Publish(ctxT(t), "big/1", make([]byte, MaxGossip+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("Publish over the limit: %v, want ErrTooLarge", err)
	}
	most := bytes.Repeat([]byte{7}, MaxGossip)
	if err := a.Publish(ctxT(t), "big/1", most); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the largest message arrives", func() bool { return eb.times(string(most)) == 1 })

	// A member that ignores the limit is not heard. It is a client, which runs
	// no pubsub that would open streams of its own.
	cl, _ := start(t, func(c *Config) { c.ClientOnly, c.Listen = true, nil })
	connect(t, cl, b)
	s, err := cl.host.NewStream(ctxT(t), b.ID(), "/meshsub/1.1.0")
	if err != nil {
		t.Fatal(err)
	}
	over := bytes.Repeat([]byte{8}, MaxGossip+1)
	for _, data := range [][]byte{[]byte("by hand"), over, []byte("by hand, too")} {
		topic := a.gossip.name("big/1")
		raw, err := proto.Marshal(&pb.RPC{Publish: []*pb.Message{{Topic: &topic, Data: data}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(append(binary.AppendUvarint(nil, uint64(len(raw))), raw...)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "what is within the limit is heard", func() bool {
		return eb.times("by hand") == 1 && eb.times("by hand, too") == 1
	})
	if eb.times(string(over)) != 0 {
		t.Error("an oversize message was shown to the validator")
	}
}

// One stream of a pair dies alone, again and again: pubsub by itself is deaf in
// that direction from the first time on.
func TestGossipSurvivesLostStreams(t *testing.T) {
	a, b, _ := line(t)
	ea, eb := listenTo(t, a, "x/1", nil), listenTo(t, b, "x/1", nil)
	tell(t, a, "x/1", "first", eb)
	for i := range 3 {
		h := a.gossip.host
		h.mu.Lock()
		s := h.out[b.ID()]
		h.mu.Unlock()
		if s == nil {
			t.Fatal("no gossip stream")
		}
		if err := s.Stream.Reset(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another stream", func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.out[b.ID()] != nil && h.out[b.ID()] != s
		})
		tell(t, a, "x/1", fmt.Sprint("a after ", i), eb)
		tell(t, b, "x/1", fmt.Sprint("b after ", i), ea)
	}
}

func TestReputeIsMildAndForgets(t *testing.T) {
	now := time.Unix(1e9, 0)
	r := newRepute(func() time.Time { return now })
	say := func(p peer.ID, good, bad int) {
		for range good {
			r.saw(p, true)
		}
		for range bad {
			r.saw(p, false)
		}
	}
	say("honest, with some stale", 400, 300)
	say("new, with few", 0, junkFree)
	say("junk", 10, 1000)
	for p, want := range map[peer.ID]float64{"honest, with some stale": 0, "new, with few": 0, "junk": -1000, "unknown": 0} {
		if got := r.score(p); got != want {
			t.Errorf("score of %q is %v, want %v", p, got, want)
		}
	}
	_, limits := scoreParams(r, newNear())
	if r.score("junk") > limits.GraylistThreshold {
		t.Error("a thousand refused messages do not silence a peer")
	}
	now = now.Add(2 * reputeHalf)
	if got := r.score("junk"); got != -250 {
		t.Errorf("score after two half-lives is %v, want -250", got)
	}
	now = now.Add(20 * time.Minute)
	if got := r.score("junk"); got != 0 {
		t.Errorf("score is never forgotten: %v", got)
	}
	for i := range 2 * reputePeers {
		r.saw(peer.ID(fmt.Sprint(i)), false)
	}
	if len(r.peers) > reputePeers {
		t.Errorf("table grew to %d", len(r.peers))
	}
}
