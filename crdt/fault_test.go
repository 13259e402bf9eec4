package crdt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// memFS is a disk in memory that fails at a chosen operation and, when the
// machine crashes, forgets what was not synced.
type memFS struct {
	dir, durable map[string]*inode // names as seen, and as on disk
	rng          *rand.Rand

	ops    int // operations so far: every open, read, write, sync, truncate, rename, dir sync and close
	failAt int // the operation that fails; 0 = none
	fault  fault
	down   bool // after a crash nothing works
	full   bool // nothing can be written
}

type inode struct {
	data   []byte
	synced int // bytes certainly on disk
}

type fault int

const (
	faultCrash      fault = iota // the machine stops before the operation
	faultCrashAfter              // the machine stops after the operation
	faultShort                   // half of a write happens, then ENOSPC; other operations fail once
	faultError                   // the operation fails once and does nothing
	faultCount
)

var (
	errCrashed = errors.New("the machine is down")
	errDisk    = errors.New("no space left on device, or the device fails")
)

func newMemFS(seed uint64) *memFS {
	return &memFS{dir: map[string]*inode{}, durable: map[string]*inode{}, rng: rand.New(rand.NewPCG(seed, 0))}
}

// op runs one operation, or what is left of it under the planned fault. whole
// does it all and half does part of it.
func (m *memFS) op(whole, half func()) error {
	if m.down {
		return errCrashed
	}
	m.ops++
	if m.ops != m.failAt {
		whole()
		return nil
	}
	switch m.fault {
	case faultCrash:
		half()
		m.down = true
		return errCrashed
	case faultCrashAfter:
		whole()
		m.down = true
		return errCrashed
	case faultShort:
		half()
	}
	return errDisk
}

// reboot is the disk as a new boot finds it: of what was not synced any part may
// be there, and its last bytes may be wrong.
func (m *memFS) reboot() *memFS {
	n := newMemFS(m.rng.Uint64())
	dir := m.durable
	if m.rng.IntN(2) == 0 {
		dir = m.dir
	}
	for name, ino := range dir {
		keep := ino.synced
		if tail := len(ino.data) - keep; tail > 0 {
			keep += m.rng.IntN(tail + 1)
		}
		data := append([]byte{}, ino.data[:keep]...)
		switch tail := keep - ino.synced; {
		case tail > 0 && m.rng.IntN(2) == 0: // a flipped bit in what was not synced
			data[ino.synced+m.rng.IntN(tail)] ^= 1 << m.rng.IntN(8)
		case len(ino.data) > ino.synced && m.rng.IntN(4) == 0: // the file was extended, its blocks never written
			data = append(data, make([]byte, m.rng.IntN(40))...)
		}
		f := &inode{data: data, synced: len(data)}
		n.dir[name], n.durable[name] = f, f
	}
	return n
}

func (m *memFS) Open(name string, truncate bool) (file, error) {
	var ino *inode
	err := m.op(func() {
		ino = m.dir[name]
		if ino == nil || truncate {
			ino = &inode{}
			m.dir[name] = ino
		}
	}, func() {})
	if err != nil {
		return nil, err
	}
	return &memFile{fs: m, ino: ino}, nil
}

func (m *memFS) Rename(from, to string) error {
	return m.op(func() {
		m.dir[to] = m.dir[from]
		delete(m.dir, from)
	}, func() {})
}

func (m *memFS) SyncDir() error {
	return m.op(func() { m.durable = maps.Clone(m.dir) }, func() {})
}

type memFile struct {
	fs  *memFS
	ino *inode
	pos int
}

func (f *memFile) Read(b []byte) (int, error) {
	n := 0
	read := func(most int) func() {
		return func() {
			n = copy(b[:min(most, len(b))], f.ino.data[f.pos:])
			f.pos += n
		}
	}
	if err := f.fs.op(read(len(b)), read(8)); err != nil {
		return n, err
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (f *memFile) Write(b []byte) (n int, err error) {
	write := func(k int) func() {
		return func() { f.ino.data = append(f.ino.data, b[:k]...); n = k }
	}
	if f.fs.full {
		return 0, errDisk
	}
	err = f.fs.op(write(len(b)), write(len(b)/2))
	return n, err
}

func (f *memFile) Sync() error {
	return f.fs.op(func() { f.ino.synced = len(f.ino.data) }, func() {})
}

func (f *memFile) Truncate(size int64) error {
	return f.fs.op(func() {
		f.ino.data = f.ino.data[:size]
		f.ino.synced = min(f.ino.synced, int(size))
	}, func() {})
}

func (f *memFile) Close() error { return f.fs.op(func() {}, func() {}) }

// workload does one of everything a replica writes and returns the statements
// that were acknowledged, all that were tried, and the last published epoch.
func workload(t *testing.T, fsys fileSystem, w *world, steps [][][]byte) (acked, tried [][]byte, epoch uint64) {
	t.Helper()
	ctx := context.Background()
	for _, s := range steps {
		tried = append(tried, s...)
	}
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel(), Now: func() time.Time { return testNow }}, fsys)
	if err != nil {
		return nil, tried, 0
	}
	published := func() (raws [][]byte) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := r.state.nodes.get(r.key); n != nil {
			raws = append(raws, n.raw)
		}
		for _, c := range r.state.byNode.get(r.key) {
			raws = append(raws, c.raw)
		}
		return raws
	}
	for i, s := range steps {
		if _, err := r.Submit(ctx, s...); err == nil {
			acked = append(acked, s...)
		}
		err := r.SetNode(ctx, Node{Version: fmt.Sprint(i)})
		if err == nil {
			err = r.SetClaims(ctx, []Claim{{Instance: DocID{1}.String(), Owner: pub("olga"), Reason: fmt.Sprint(i)}})
		}
		own := published()
		tried = append(tried, own...)
		if err == nil {
			acked = append(acked, own...)
			epoch = r.own.epoch
		}
		if i == len(steps)/2 {
			r.mu.Lock()
			err := r.log.compact(r.state.index().statements())
			r.mu.Unlock()
			if err != nil && !errors.Is(err, errLogFailed) && !errors.Is(err, errNotReplaced) {
				t.Errorf("compact: %v does not say that the log has failed", err)
			}
		}
	}
	return acked, tried, epoch
}

// A crash, a short write, a failed open, read, write, sync, truncation, rename or
// close at every single point: what was acknowledged is there after the next boot, and nothing
// that was never written is.
func TestFaultAtEveryWrite(t *testing.T) {
	w := newWorld(t)
	steps := [][][]byte{{w.admit("n1", stmt.RoleNode), w.admit("olga", stmt.RoleOwner)}}
	a := w.author("olga", nil)
	id, raws, err := a.Create(Spec{Name: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	steps = append(steps, raws)
	for i := range 4 {
		raws, err := a.Set(id, func(s *Spec) { s.Replicas = i + 1 })
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, raws)
	}
	clean := newMemFS(0)
	if acked, _, _ := workload(t, clean, w, steps); len(acked) < len(steps) {
		t.Fatalf("only %d statements acknowledged without a fault", len(acked))
	}
	for at := 1; at <= clean.ops; at++ {
		for kind := range faultCount {
			seed := uint64(at)*100 + uint64(kind)
			fsys := newMemFS(seed)
			fsys.failAt, fsys.fault = at, kind
			acked, tried, epoch := workload(t, fsys, w, steps)
			checkRecovered(t, fmt.Sprintf("operation %d, fault %d, seed %d", at, kind, seed), fsys.reboot(), w, acked, tried, epoch)
		}
	}
	t.Logf("%d operations, %d faults each", clean.ops, faultCount)
}

func checkRecovered(t *testing.T, what string, disk *memFS, w *world, acked, tried [][]byte, epoch uint64) {
	t.Helper()
	r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, disk)
	if err != nil {
		t.Fatalf("%s: reopen: %v", what, err)
	}
	for _, raw := range r.state.index().statements() {
		known := false
		for _, k := range tried {
			known = known || string(k) == string(raw)
		}
		if !known {
			t.Fatalf("%s: a statement that nobody made is held", what)
		}
	}
	for _, raw := range acked {
		if changed, err := r.state.Apply(raw, testNow); changed || (err != nil && !errors.Is(err, ErrStale)) {
			st, _ := stmt.Peek(raw, w.net)
			t.Fatalf("%s: acknowledged %s statement is lost (%v)", what, st.Kind, err)
		}
	}
	if err := r.SetNode(context.Background(), Node{Version: "after"}); err == nil && r.own.epoch <= epoch {
		t.Fatalf("%s: epoch %d after %d was published", what, r.own.epoch, epoch)
	}
}

// A bit flipped anywhere in a synced log: nothing wrong is accepted, and what was
// before the damage is there. A flipped header is taken for another version's,
// and nothing is changed.
func TestBitRot(t *testing.T) {
	w := newWorld(t)
	raws := [][]byte{w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode), w.admit("n3", stmt.RoleNode)}
	whole := []byte(logMagic)
	ends := []int{}
	for _, raw := range raws {
		whole = appendFrame(whole, raw)
		ends = append(ends, len(whole))
	}
	for i := range whole {
		fsys := newMemFS(1)
		data := append([]byte{}, whole...)
		data[i] ^= 0x10
		fsys.dir[logName] = &inode{data: data, synced: len(data)}
		r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, fsys)
		if i < len(logMagic) {
			if !errors.Is(err, errForeignLog) || string(fsys.dir[logName].data) != string(data) {
				t.Fatalf("byte %d: %v", i, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("byte %d: %v", i, err)
		}
		if got := string(fsys.dir[cutName].data); got != string(data[len(data)-len(got):]) || r.Recovered() != LogCut {
			t.Fatalf("byte %d: what was cut off is not kept", i)
		}
		want := 0
		for _, e := range ends {
			if e <= i && i >= len(logMagic) {
				want++
			}
		}
		if got := len(r.View().Members()); got != want {
			t.Fatalf("byte %d: %d members, want the %d before it", i, got, want)
		}
		if err := r.SetNode(context.Background(), Node{}); err != nil && !errors.Is(err, ErrNotMember) {
			t.Fatalf("byte %d: the log does not go on: %v", i, err)
		}
	}
}

// image returns a disk with these files, all on it for good.
func image(files map[string][]byte) *memFS {
	m := newMemFS(1)
	for name, data := range files {
		f := &inode{data: slices.Clone(data), synced: len(data)}
		m.dir[name], m.durable[name] = f, f
	}
	return m
}

// The same faults while a damaged log is read and mended: the next start has what
// was before the damage, and does not forget that something was lost.
func TestFaultWhileRecovering(t *testing.T) {
	w := newWorld(t)
	log := []byte(logMagic)
	for _, raw := range [][]byte{w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode), w.node("n2", 1, 1, Node{})} {
		log = appendFrame(log, raw)
	}
	rotten := slices.Clone(log)
	rotten[len(rotten)-9] ^= 1
	for name, files := range map[string]map[string][]byte{
		"torn":    {logName: append(slices.Clone(log), 1, 2, 3), epochName: []byte("3\n")},
		"rotten":  {logName: rotten, epochName: []byte("3\n")},
		"no log":  {epochName: []byte("3\n")},
		"no head": {logName: log[:4], epochName: []byte("3\n")},
	} {
		t.Run(name, func(t *testing.T) {
			open := func(fsys *memFS) (*Replica, error) {
				return openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, fsys)
			}
			clean := image(files)
			r, err := open(clean)
			if err != nil || !r.mustSync.Load() {
				t.Fatalf("%v, must synchronise %v", err, r.mustSync.Load())
			}
			want := render(r.View())
			for at := 1; at <= clean.ops; at++ {
				for kind := range faultCount {
					fsys := image(files)
					fsys.failAt, fsys.fault = at, kind
					first, ferr := open(fsys)
					if ferr == nil && render(first.View()) != want {
						t.Fatalf("operation %d, fault %d: opened with another state:%s", at, kind, diffLines(want, render(first.View())))
					}
					again, err := open(fsys.reboot())
					if err != nil {
						t.Fatalf("operation %d, fault %d: reopen: %v", at, kind, err)
					}
					if got := render(again.View()); got != want {
						t.Fatalf("operation %d, fault %d:%s", at, kind, diffLines(want, got))
					}
					if !again.mustSync.Load() {
						t.Fatalf("operation %d, fault %d: the loss is forgotten", at, kind)
					}
				}
			}
			t.Logf("%d operations, %d faults each", clean.ops, faultCount)
		})
	}
}

// A device that fails to read does not make the log shorter.
func TestUnreadableLogIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	log := appendFrame(appendFrame([]byte(logMagic), w.admit("n1", stmt.RoleNode)), w.admit("n2", stmt.RoleNode))
	files := map[string][]byte{logName: log}
	clean := image(files)
	if _, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, clean); err != nil {
		t.Fatal(err)
	}
	for at := 1; at <= clean.ops; at++ {
		for _, kind := range []fault{faultShort, faultError} {
			fsys := image(files)
			fsys.failAt, fsys.fault = at, kind
			r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, fsys)
			if err == nil && r.Recovered() != LogWhole {
				t.Errorf("operation %d, fault %d: the log is %s", at, kind, r.Recovered())
			}
			if got := fsys.dir[logName]; got == nil || string(got.data) != string(log) {
				t.Errorf("operation %d, fault %d: the log was changed", at, kind)
			}
		}
	}
}

// A bit flipped anywhere in a file beside the log keeps no node from starting, and
// lets it say nothing under an epoch that it has used.
func TestBitRotBesideTheLog(t *testing.T) {
	w := newWorld(t)
	log := []byte(logMagic)
	for _, raw := range [][]byte{w.admit("n1", stmt.RoleNode), w.admit("n2", stmt.RoleNode), w.node("n1", 17, 1, Node{})} {
		log = appendFrame(log, raw)
	}
	files := map[string][]byte{logName: log, epochName: []byte("17\n"), resyncName: []byte("state was lost\n")}
	for _, name := range []string{epochName, resyncName} {
		for bit := range 8 * len(files[name]) {
			for _, lost := range []bool{false, true} {
				fsys := image(files)
				fsys.dir[name].data[bit/8] ^= 1 << (bit % 8)
				if lost {
					delete(fsys.dir, logName)
				}
				r, err := openReplica(ReplicaConfig{Key: keyOf("n1"), Network: w.net, Root: w.root, Engine: NewModel()}, fsys)
				if err != nil {
					t.Fatalf("%s, bit %d: %v", name, bit, err)
				}
				if !r.mustSync.Load() {
					t.Errorf("%s, bit %d, log lost %v: does not wait for its peers", name, bit, lost)
				}
				if lost {
					continue
				}
				if err := r.SetNode(context.Background(), Node{}); err != nil || r.own.epoch <= 17 {
					t.Errorf("%s, bit %d: epoch %d after 17 was used (%v)", name, bit, r.own.epoch, err)
				}
			}
		}
	}
}
