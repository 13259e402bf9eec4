package crdt

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

func (w *world) open(t testing.TB, fsys fileSystem, returning bool) *Replica {
	t.Helper()
	r, err := openReplica(ReplicaConfig{
		Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Returning: returning, Now: func() time.Time { return testNow },
	}, fsys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// nodes are n registers of n1, each of which replaces the one before.
func (w *world) nodes(n int) (raws [][]byte) {
	for range n {
		w.seq++
		raws = append(raws, w.node("n1", 1, w.seq, Node{Version: fmt.Sprint(w.seq), Region: strings.Repeat("r", 6000)}))
	}
	return raws
}

// A node that restarts often has its log compacted all the same.
func TestCompactsOverRestarts(t *testing.T) {
	w, fsys := newWorld(t), newMemFS(1)
	admit := w.admit("n1", stmt.RoleNode)
	most := int64(0)
	for range 8 {
		r := w.open(t, fsys, false)
		if _, err := r.merge("", append([][]byte{admit}, w.nodes(100)...), testNow); err != nil {
			t.Fatal(err)
		}
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		most = max(most, r.log.bytes())
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if most > 2*compactAbove {
		t.Errorf("the log grew to %d bytes", most)
	}
}

// A disk that is full for a while stops acknowledgement and no more: the state
// goes on, what waits for the disk is bounded, a compaction that finds no room
// leaves the old log in use, and everything is there when the disk has room.
func TestDiskFull(t *testing.T) {
	for _, much := range []bool{false, true} {
		w, fsys, ctx := newWorld(t), newMemFS(1), context.Background()
		r := w.open(t, fsys, false)
		if _, err := r.Submit(ctx, w.admit("n1", stmt.RoleNode)); err != nil {
			t.Fatal(err)
		}
		before := r.log.bytes()
		fsys.full = true
		n := 10
		if much {
			n = 2 * maxBacklog / 6000
		}
		if _, err := r.merge("", w.nodes(n), testNow); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Submit(ctx, w.admit("n2", stmt.RoleNode)); err == nil {
			t.Fatal("acknowledged on a full disk")
		}
		if !r.View().IsMember(pub("n2"), stmt.RoleNode) || r.backlog.size > maxBacklog || r.backlog.rewrite != much {
			t.Fatalf("backlog of %d bytes, rewrite %v", r.backlog.size, r.backlog.rewrite)
		}
		now := time.Now()
		r.liveSize = -1 << 40 // compaction is due by size as well
		for range 3 {
			if err := r.flush(); err != nil {
				t.Fatalf("a full disk ends the node: %v", err)
			}
		}
		if r.log.bytes() != before || (much && !r.backlog.retry.After(now)) {
			t.Fatalf("log of %d bytes, retry at %v", r.log.bytes(), r.backlog.retry)
		}
		if tmp := fsys.dir[logName+".tmp"]; tmp != nil && len(tmp.data) > 0 {
			t.Error("half a log keeps the disk full")
		}
		fsys.full = false
		r.backlog.retry = time.Time{}
		if err := r.flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Submit(ctx, w.admit("n3", stmt.RoleNode)); err != nil {
			t.Fatal(err)
		}
		want := render(r.View())
		if got := render(w.open(t, fsys.reboot(), true).View()); got != want {
			t.Fatalf("after the restart:%s", diffLines(want, got))
		}
	}
}

// A log of another version, or one with a damaged header, is left alone.
func TestForeignLog(t *testing.T) {
	w := newWorld(t)
	for _, text := range []string{"formation/log/2\n" + strings.Repeat("x", 4096), strings.Repeat("\x00", len(logMagic))} {
		fsys := newMemFS(1)
		fsys.dir[logName] = &inode{data: []byte(text)}
		_, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, fsys)
		if !errors.Is(err, errForeignLog) || string(fsys.dir[logName].data) != text {
			t.Errorf("%.16q: %v", text, err)
		}
	}
}

// What Open says of the log it found, and whether a session with a peer must make
// good what was lost before anything is decided; also over restarts.
func TestRecovered(t *testing.T) {
	w := newWorld(t)
	log := appendFrame(appendFrame([]byte(logMagic), w.admit("n1", stmt.RoleNode)), w.admit("n2", stmt.RoleNode))
	alone := appendFrame([]byte(logMagic), w.raws[0])
	torn := func(b []byte) []byte { return append(b[:len(b):len(b)], 1, 2, 3) }
	for _, tt := range []struct {
		name      string
		log       []byte
		epoch     string
		returning bool
		want      Recovery
		must      bool
	}{
		{"first start", nil, "", false, LogAbsent, false},
		{"the log is gone", nil, "", true, LogAbsent, true},
		{"the log is gone, the epoch is not", nil, "3\n", false, LogAbsent, true},
		{"half a header", []byte(logMagic[:5]), "", true, LogAbsent, true},
		{"whole", log, "3\n", true, LogWhole, false},
		{"torn", torn(log), "3\n", true, LogCut, true},
		{"torn, of a node that is alone", torn(alone), "3\n", true, LogCut, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fsys := newMemFS(1)
			if tt.log != nil {
				fsys.dir[logName] = &inode{data: tt.log}
			}
			fsys.dir[epochName] = &inode{data: []byte(tt.epoch)}
			for boot := range 2 {
				r := w.open(t, fsys, tt.returning)
				if boot == 0 && r.Recovered() != tt.want || boot == 1 && r.Recovered() != LogWhole {
					t.Errorf("boot %d: recovered %s, want %s", boot, r.Recovered(), tt.want)
				}
				if must := r.mustSync.Load(); must != tt.must || r.givesUp(0, time.Hour) == must {
					t.Errorf("boot %d: must synchronise %v, want %v", boot, must, tt.must)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// A session with a peer ends the wait, for the next start as well.
func TestSessionMakesGood(t *testing.T) {
	w, n, dir := newWorld(t), newFakeNet(), t.TempDir()
	w.admit("n1", stmt.RoleNode)
	w.admit("n2", stmt.RoleNode)
	open := func() *Replica {
		end := n.end(pub("n1"))
		r, err := Open(ReplicaConfig{Dir: dir, Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Returning: true, Streams: end, SyncInterval: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		n.hello(t, w, end, r)
		return r
	}
	start(t, w, n, "n2", t.TempDir())
	r := open()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	select {
	case <-r.Synced(0):
	case <-time.After(20 * time.Second):
		t.Fatal("not synchronised")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	r = open()
	defer r.Close()
	if r.mustSync.Load() {
		t.Error("the next start waits again")
	}
}

// A log is compacted at once when it has grown threefold, and by a quarter when
// that is some time ago; one that has not grown is left alone.
func TestCompactsInTime(t *testing.T) {
	w, fsys := newWorld(t), newMemFS(1)
	r := w.open(t, fsys, false)
	r.liveSize = 4 * compactAbove
	now := testNow
	for _, tt := range []struct {
		ago  time.Duration
		size int64
		want bool
	}{
		{time.Second, 2 * 4 * compactAbove, false},
		{time.Second, compactFactor * 4 * compactAbove, true},
		{compactEvery, 4 * compactAbove, false},
		{compactEvery, 5 * compactAbove, true},
	} {
		r.compacted = now.Add(-tt.ago)
		if got := tt.size >= r.mostLog(now); got != tt.want {
			t.Errorf("%d bytes of %d, %s after the last: %v", tt.size, r.liveSize, tt.ago, got)
		}
	}
}
