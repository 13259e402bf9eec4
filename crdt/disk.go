package crdt

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// Disk is a disk in memory for a [Replica] that is simulated: it can lose what was
// not synced. Safe for concurrent use.
type Disk struct {
	mu           sync.Mutex
	dir, durable map[string]*content // names as seen, and as after a loss of power
	used         bool                // by a Replica
	off          bool                // a Replica that was killed sees nothing of it any more
}

// content is what a file holds. Guarded by Disk.mu.
type content struct {
	data   []byte
	synced int // bytes that a loss of power leaves
}

// errOff: the machine, or the process, has ended.
var errOff = errors.New("crdt: the disk is gone")

// NewDisk is an empty disk.
func NewDisk() *Disk {
	return &Disk{dir: map[string]*content{}, durable: map[string]*content{}}
}

// Kill is the disk as the next process finds it when the one that uses it is
// killed now: whole. The one before can do nothing more.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	return &Disk{dir: d.dir, durable: d.durable}
}

// LosePower is the disk as the next boot finds it when the machine stops now: of
// what was not synced any part may be there, and its last bytes may be wrong. The
// one before can do nothing more.
func (d *Disk) LosePower(rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	names := d.durable
	if rng.IntN(2) == 0 {
		names = d.dir
	}
	next := NewDisk()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c := names[name]
		keep := c.synced + rng.IntN(len(c.data)-c.synced+1)
		data := slices.Clone(c.data[:keep])
		if keep > c.synced && rng.IntN(2) == 0 {
			data[c.synced+rng.IntN(keep-c.synced)] ^= 1 << rng.IntN(8)
		}
		c = &content{data: data, synced: len(data)}
		next.dir[name], next.durable[name] = c, c
	}
	return next
}

// take gives the disk to one Replica, until the result is closed.
func (d *Disk) take() (io.Closer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.used || d.off {
		return nil, errors.New("the disk is in use by another replica")
	}
	d.used = true
	return (*release)(d), nil
}

type release Disk

func (r *release) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = false
	return nil
}

// do runs one operation.
func (d *Disk) do(f func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off {
		return errOff
	}
	f()
	return nil
}

// Open is fileSystem's.
func (d *Disk) Open(name string, truncate bool) (file, error) {
	f := &diskFile{disk: d}
	err := d.do(func() {
		if f.content = d.dir[name]; f.content == nil || truncate {
			f.content = &content{}
			d.dir[name] = f.content
		}
	})
	return f, err
}

// Rename is fileSystem's.
func (d *Disk) Rename(from, to string) error {
	return d.do(func() {
		d.dir[to] = d.dir[from]
		delete(d.dir, from)
	})
}

// SyncDir is fileSystem's.
func (d *Disk) SyncDir() error { return d.do(func() { d.durable = maps.Clone(d.dir) }) }

type diskFile struct {
	*content
	disk *Disk
	pos  int
}

func (f *diskFile) Read(b []byte) (n int, err error) {
	err = f.disk.do(func() {
		n = copy(b, f.data[min(f.pos, len(f.data)):])
		f.pos += n
	})
	if err == nil && n == 0 && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

func (f *diskFile) Write(b []byte) (int, error) {
	if err := f.disk.do(func() { f.data = append(f.data, b...) }); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (f *diskFile) Sync() error { return f.disk.do(func() { f.synced = len(f.data) }) }

func (f *diskFile) Truncate(size int64) error {
	return f.disk.do(func() {
		f.data = f.data[:min(int(size), len(f.data))]
		f.synced = min(f.synced, len(f.data))
	})
}

// Close does nothing: a process that ends closes its files.
func (f *diskFile) Close() error { return nil }
