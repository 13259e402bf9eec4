package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Fetch brings a pack with its base, or a base, here; verified, durable, announced
// and, but for NoPin, pinned when it returns nil. What is here already is not
// asked for, and what came before an error or the end of ctx is kept for the next
// Fetch. Callers that ask for the same CID share one fetch, which ends when all
// of them have gone. ErrNoPeer, ErrCorrupt (the pack itself is bad; a bad peer is
// only left aside), ErrTooLarge, ErrNoSpace (it does not fit beside what is kept
// free; the message has both numbers).
func (s *Store) Fetch(ctx context.Context, c cid.Cid, opts FetchOptions) error {
	if err := CheckCID(c); err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	for {
		j, err := s.join(c, opts)
		if err != nil {
			return fmt.Errorf("fetch %s: %w", c, err)
		}
		again, err := j.wait(ctx, opts)
		if again {
			continue
		}
		if err != nil {
			return fmt.Errorf("fetch %s: %w", c, err)
		}
		return nil
	}
}

// progressEvery is how often a caller hears of progress.
const progressEvery = 200 * time.Millisecond

// job is one fetch, shared by its callers.
type job struct {
	s       *Store
	root    cid.Cid
	fetcher Fetcher
	bitswap bool
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // valid after done

	mu      sync.Mutex
	callers int
	from    []peer.ID
	pins    int // callers that want it pinned

	total, local, fetched, blocks atomic.Int64
	started                       atomic.Int64 // bytes in place before this fetch
	peers                         atomic.Int64
}

// join finds the fetch of a root or starts it.
func (s *Store) join(c cid.Cid, opts FetchOptions) (*job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("store is closed")
	}
	j := s.jobs[c]
	fresh := j == nil
	if fresh {
		ctx, cancel := context.WithCancel(s.ctx)
		j = &job{s: s, root: c, fetcher: s.fetcher, bitswap: opts.Bitswap, ctx: ctx, cancel: cancel, done: make(chan struct{})}
		s.jobs[c] = j
	}
	j.mu.Lock()
	j.callers++
	if !opts.NoPin {
		j.pins++
	}
	for _, p := range opts.From {
		if !slices.Contains(j.from, p) {
			j.from = append(j.from, p)
		}
	}
	j.mu.Unlock()
	if fresh {
		s.work.Add(1)
		go func() {
			defer s.work.Done()
			defer j.cancel()
			j.err = j.run(j.ctx)
			close(j.done)
		}()
	}
	return j, nil
}

// wait follows the job for one caller. again says that the job ended because
// its earlier callers had gone, so this one needs another.
func (j *job) wait(ctx context.Context, opts FetchOptions) (again bool, err error) {
	report := opts.Progress
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		select {
		case <-j.done:
			if report != nil {
				report(j.progress())
			}
			return errors.Is(j.err, context.Canceled) && j.s.ctx.Err() == nil && ctx.Err() == nil, j.err
		case <-tick.C:
			if report != nil {
				report(j.progress())
			}
		case <-ctx.Done():
			j.mu.Lock()
			j.callers--
			if !opts.NoPin {
				j.pins--
			}
			last := j.callers == 0
			j.mu.Unlock()
			if last {
				j.cancel()
				<-j.done // what came is on disk now
			}
			return false, ctx.Err()
		}
	}
}

func (j *job) progress() Progress {
	local, fetched := j.local.Load(), j.fetched.Load()
	return Progress{
		Total: j.total.Load(), Done: j.started.Load() + local + fetched, Fetched: fetched, Local: local,
		Blocks: j.blocks.Load(), Peers: int(j.peers.Load()),
	}
}

// known gives the peers that callers named so far.
func (j *job) known() []peer.ID {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.from)
}

// run brings the root here and notes it, pinned if a caller wants that. GC keeps
// the root until the note is made, and nobody joins afterwards.
func (j *job) run(ctx context.Context) error {
	err := j.fetch(ctx)
	for noted, pinned := false, false; ; noted = true {
		j.s.mu.Lock()
		pin := j.wantsPin()
		if err != nil || noted && (pinned || !pin) {
			delete(j.s.jobs, j.root)
			j.s.mu.Unlock()
			break
		}
		j.s.mu.Unlock()
		err, pinned = j.s.noteWhole(j.root, pin), pin
	}
	if err == nil {
		j.s.announce(j.root)
	}
	return err
}

func (j *job) wantsPin() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.pins > 0
}

// fetch brings what is missing of the root, if anything is.
func (j *job) fetch(ctx context.Context) error {
	whole, err := j.s.Complete(ctx, j.root)
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	if whole {
		return nil
	}
	return j.bring(ctx)
}

// bring gets what is missing.
func (j *job) bring(ctx context.Context) error {
	d, first, err := j.describe(ctx)
	if err != nil {
		return err
	}
	if first != nil {
		defer first.stream.Close()
	}
	if err := j.s.putDescription(d, false); err != nil {
		return err
	}
	parts, closeAll, err := j.open(ctx, d)
	if err != nil {
		return err
	}
	defer closeAll()
	if len(parts) == 0 {
		return nil
	}
	return giveBack(newSwarm(j, parts, first).run(ctx), parts)
}

// giveBack removes the parts of a fetch that filled the disk: what they hold can
// be fetched again, and what others write now cannot.
func giveBack(err error, parts []*part) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	for _, p := range parts {
		if !p.record.Whole {
			err = errors.Join(err, p.discard())
		}
	}
	return err
}

// putDescription stores a pack's nodes, so that a later fetch and other peers
// have them. pin also pins it, which says that its images are whole.
func (s *Store) putDescription(d *description, pin bool) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		for i, r := range d.roots {
			if err := putSigned(tx, r, pin && i == 0); err != nil {
				return err
			}
		}
		for c, data := range d.nodes {
			if err := putNode(tx, c, data); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store nodes: %w", err)
	}
	return nil
}

// noteWhole records that everything of a root is here. pin also pins it.
func (s *Store) noteWhole(root cid.Cid, pin bool) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		var rec rootRecord
		if err := getRecord(tx, bRoots, root.Bytes(), &rec); err != nil {
			return err
		}
		rec.Whole = true
		if err := putRecord(tx, bRoots, root.Bytes(), rec); err != nil || !pin {
			return err
		}
		return tx.Bucket(bPins).Put(root.Bytes(), []byte{})
	})
	if err != nil {
		return fmt.Errorf("root %s: %w", root, err)
	}
	return nil
}

// announce provides a root and its entry roots in the background: routing may
// take its time, and the data is here either way.
func (s *Store) announce(root cid.Cid) {
	s.mu.Lock()
	f := s.fetcher
	if f == nil || s.closed {
		s.mu.Unlock()
		return
	}
	s.work.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.work.Done()
		if err := s.Announce(s.ctx, root); err != nil && s.ctx.Err() == nil {
			s.log.Warn("cannot announce a pack", "pack", root, "err", err)
		}
	}()
}

// Announce tells the network that this node holds a pack or base: its root and
// its entry roots, never chunks. Announcements expire, so callers repeat it.
func (s *Store) Announce(ctx context.Context, root cid.Cid) error {
	s.mu.Lock()
	f := s.fetcher
	s.mu.Unlock()
	if f == nil {
		return nil
	}
	n, err := s.root(root)
	if err != nil {
		return fmt.Errorf("announce %s: %w", root, err)
	}
	all := []cid.Cid{root}
	for _, e := range n.entries() {
		all = append(all, e.Root)
	}
	if n.pack != nil {
		all = append(all, n.pack.Base)
	}
	for _, c := range all {
		if err := f.Provide(ctx, c); err != nil {
			return fmt.Errorf("announce %s: %w", c, err)
		}
	}
	return nil
}

// open claims the entries that are not whole, opens their parts and fills in what
// this machine has. closeAll ends what is left of the work, and releases all.
func (j *job) open(ctx context.Context, d *description) (parts []*part, closeAll func(), err error) {
	var free []func()
	end := func() {
		for _, p := range parts {
			j.s.drop(p)
		}
		for _, f := range free {
			f()
		}
	}
	defer func() {
		if err != nil {
			err = giveBack(err, parts)
			end()
		}
	}()
	need, err := j.s.unallocated(d.entries)
	if err != nil {
		return nil, nil, err
	}
	if err := j.s.needSpace(need); err != nil {
		return nil, nil, err
	}
	order := make([]int, len(d.entries)) // one order for all jobs, or they wait for each other
	for i := range order {
		order[i] = i
		j.total.Add(d.entries[i].Size)
	}
	slices.SortFunc(order, func(a, b int) int {
		return slices.Compare(d.entries[a].Root.Bytes(), d.entries[b].Root.Bytes())
	})
	for _, i := range order {
		e := d.entries[i]
		release, err := j.s.claim(ctx, e.Root)
		if err != nil {
			return parts, nil, err
		}
		r, err := j.s.touch(e.Root)
		if err == nil && r.Whole {
			release()
			j.started.Add(e.Size)
			continue
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			free = append(free, release)
			return parts, nil, err
		}
		p, err := j.s.openPart(e, d.trees[i])
		if err != nil {
			free = append(free, release)
			return parts, nil, err
		}
		p.claimed = release
		parts = append(parts, p)
		_, inPlace := p.state()
		j.started.Add(inPlace)
		if err := j.borrow(p); err != nil {
			return parts, nil, err
		}
		j.s.mu.Lock()
		j.s.parts[e.Root] = p
		j.s.mu.Unlock()
	}
	return parts, end, nil
}

func (j *job) borrow(p *part) error {
	gained, err := p.borrow()
	j.local.Add(gained)
	return err
}

// drop ends work on a part, finished or not: once, whoever comes first.
func (s *Store) drop(p *part) {
	p.release.Do(func() {
		s.mu.Lock()
		delete(s.parts, p.entry.Root)
		s.mu.Unlock()
		if err := p.close(); err != nil {
			s.log.Error("cannot save the progress of a fetch", "entry", p.entry.Root, "err", err)
		}
		p.claimed()
	})
}
