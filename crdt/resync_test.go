package crdt

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestFreshness(t *testing.T) {
	f := freshness{resync: make(chan struct{}, 1)}
	start := f.wait(0)
	if isClosed(start) || len(f.resync) != 0 || f.wait(0) != start {
		t.Fatal("fresh before any session")
	}
	f.reach(0)
	if !isClosed(start) || !isClosed(f.wait(0)) {
		t.Fatal("not fresh after a session")
	}
	five, seven := f.wait(5*time.Second), f.wait(7*time.Second)
	if isClosed(five) || len(f.resync) != 1 {
		t.Fatal("what was held before a sleep counts")
	}
	if since, waits := f.longest(); !waits || since != 5*time.Second {
		t.Errorf("longest wait: %v, %v", since, waits)
	}
	f.reach(6 * time.Second)
	if !isClosed(five) || isClosed(seven) {
		t.Error("a session that began between two waits ends the first alone")
	}
	f.reach(3 * time.Second) // a slow one, from before
	if !isClosed(f.wait(6*time.Second)) || isClosed(seven) {
		t.Error("an old session undoes a newer one")
	}
	f.reach(7 * time.Second)
	if _, waits := f.longest(); !isClosed(seven) || waits {
		t.Error("the last wait does not end")
	}
}

// After a sleep nothing but a session that begins then counts, and it begins at
// once, whatever hangs; that nobody is there then is no sign of being alone, as it is
// at a start.
func TestResynchronise(t *testing.T) {
	w, n := newWorld(t), newFakeNet()
	n.lossy = true
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	n.hostile(w, "mute", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	other, _ := start(t, w, n, "n1", t.TempDir())
	if _, err := other.Submit(context.Background(), w.raws...); err != nil {
		t.Fatal(err)
	}
	var clock atomic.Int64
	end := n.end(pub("n2"))
	r, err := Open(ReplicaConfig{
		Dir: t.TempDir(), Key: keyOf("n2"), Network: w.net, Root: w.root, Engine: NewModel(), Gossip: end, Streams: end,
		SyncInterval: 20 * time.Millisecond, Boot: func() time.Duration { return time.Duration(clock.Load()) },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.hello(t, w, end, r)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "the first synchronisation", func() bool { return isClosed(r.Synced(0)) })

	woke := time.Hour
	clock.Store(int64(woke))
	eventually(t, "synchronisation after a sleep", func() bool { return isClosed(r.Synced(woke)) })

	n.setCut(pub("n1"), true)
	n.setCut(pub("mute"), true)
	woke = 2 * time.Hour
	clock.Store(int64(woke))
	failed := r.Stats().FailedSessions
	n.setCut(pub("mute"), false)
	again := r.Synced(woke)
	// It has tried with whom there is, in vain.
	eventually(t, "a session", func() bool {
		r.asking.mu.Lock()
		defer r.asking.mu.Unlock()
		return len(r.asking.with) > 0 || r.Stats().FailedSessions > failed
	})
	if isClosed(again) {
		t.Fatal("synchronised with nobody")
	}
	n.setCut(pub("mute"), true)
	if r.givesUp(0, aloneAfter+1) || !r.givesUp(0, giveUpAfter+1) {
		t.Error("it does not wait for the peers it had to be back")
	}
	clock.Store(int64(woke + giveUpAfter + 1))
	eventually(t, "alone", func() bool { return isClosed(again) })
}
