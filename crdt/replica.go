package crdt

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt/stmt"
)

// ReplicaConfig configures [Open]. Dir or Disk, Key, Network and Engine are required.
type ReplicaConfig struct {
	// Dir holds the log; one process at a time. It is made when missing.
	Dir string
	// Disk, if not nil, holds the log in the place of Dir.
	Disk *Disk
	// Key is this node's key, the author of its registers.
	Key     ed25519.PrivateKey
	Network stmt.NetworkID
	// Root is the network's root key, zero for an open network.
	Root stmt.Key
	// RootKey is the private root key when this node holds it, else nil. Only
	// RevokeMember, AdmitMember and SetAnyOwner use it.
	RootKey ed25519.PrivateKey
	// Engine merges specs: NewModel or automerge.New. The Replica owns it.
	Engine SpecEngine
	// Gossip and Streams connect the replica; nil for one that stands alone.
	// SetTransport may give them later, before Run.
	Gossip  Gossip
	Streams Streams
	// Now is the wall clock (default time.Now). It decides the expiry of
	// invites and fills the display time of statements, nothing else.
	Now func() time.Time
	// Boot is the time since boot, suspension included, by which [Replica.Synced]
	// counts (default: since Open, by a clock that stands still in suspension).
	Boot func() time.Duration
	// SyncInterval is the mean time between anti-entropy sessions (default 20 s,
	// jittered by half to either side).
	SyncInterval time.Duration
	// Returning says that the node has run in this network before, so that no log
	// in Dir is a lost log. Leave it false at the first start, and no peer is
	// waited for.
	Returning bool
	// Offence is told, if not nil, of each thing a peer said that no honest one
	// says. It must not call back into the Replica.
	Offence func(p peer.ID, reason Reason)
	// Logger defaults to discarding.
	Logger *slog.Logger
}

// Replica drives a [State]: it keeps it on disk, spreads it by gossip, repairs
// it by anti-entropy, and writes this node's own registers. Its methods are safe
// for concurrent use.
//
// A Replica reads and accepts statements from Open until Close; Run, which
// closes it at its end, connects it to others.
type Replica struct {
	cfg  ReplicaConfig
	self peer.ID
	key  stmt.Key
	fsys fileSystem
	lock io.Closer

	ownMu     sync.Mutex // one writer of own registers at a time; before mu
	mu        sync.Mutex // guards state, own and the order of log appends
	state     *State
	own       ownRegisters
	ageing    ageing
	omissions omissions
	doubled   equivocations
	log       *stateLog
	backlog   backlog
	changed   chan struct{} // closed and replaced at every change
	liveSize  int64         // bytes of the log without what was superseded, when that was counted last; 0: not since Open
	compacted time.Time     // zero: not since Open
	closed    bool

	recovery Recovery    // how Open found the log
	mustSync atomic.Bool // what was lost has not been made good by a session yet

	fresh    freshness
	readopt  chan struct{} // someone holds a newer register of this node
	limits   limits        // of what peers say
	compared comparisons
	asking   dialogues // anti-entropy sessions this node began
	serving  dialogues // and those others began
	stats    counters
}

// counters are what Stats returns.
type counters struct {
	applied, sessions, failedSessions, sent, received atomic.Uint64
	refusals                                          refusals
}

// Stats are counts since Open, and sizes now.
type Stats struct {
	Applied        uint64 // statements merged
	Refused        uint64 // of what peers said: statements, whole messages, and sessions
	RefusedBy      map[Reason]uint64
	Sessions       uint64 // anti-entropy sessions ended well, both sides
	FailedSessions uint64
	Sent, Received uint64               // statements moved by anti-entropy
	Equivocations  map[stmt.Kind]uint64 // two contents signed for one thing, by kind
	Held, Pending  int
	LogBytes       int64
}

// Open loads the state in cfg.Dir. A damaged log is cut at its first bad frame,
// with a warning; what was behind comes back from peers. Errors are those of the
// file system, of a directory in use, and of a log of another version, which is
// left alone.
func Open(cfg ReplicaConfig) (*Replica, error) {
	if cfg.Disk != nil {
		return openOn(cfg, cfg.Disk, cfg.Disk.take)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	return openOn(cfg, osDir(cfg.Dir), func() (io.Closer, error) { return lockDir(cfg.Dir) })
}

func openOn(cfg ReplicaConfig, fsys fileSystem, take func() (io.Closer, error)) (*Replica, error) {
	lock, err := take()
	if err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	r, err := openReplica(cfg, fsys)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	r.lock = lock
	return r, nil
}

func openReplica(cfg ReplicaConfig, fsys fileSystem) (*Replica, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize || cfg.Engine == nil {
		return nil, errors.New("open replica: Key and Engine are required")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Boot == nil {
		opened := time.Now()
		cfg.Boot = func() time.Duration { return time.Since(opened) }
	}
	if cfg.SyncInterval <= 0 {
		cfg.SyncInterval = 20 * time.Second
	}
	key := stmt.KeyOf(cfg.Key)
	r := &Replica{
		cfg: cfg, key: key, self: peer.ID(key.PeerID()), fsys: fsys,
		state:   NewState(cfg.Network, cfg.Root, cfg.Engine),
		changed: make(chan struct{}), readopt: make(chan struct{}, 1),
		fresh:  freshness{resync: make(chan struct{}, 1)},
		limits: newLimits(),
	}
	if err := r.load(); err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	return r, nil
}

// load reads what is on disk.
func (r *Replica) load() (err error) {
	if err := r.own.load(r.fsys); err != nil {
		return err
	}
	if err := r.loadOmitted(); err != nil {
		return err
	}
	if err := r.loadDoubled(); err != nil {
		return err
	}
	r.state.tellOmitted, r.state.tellDoubled = true, true
	marker, err := readSmall(r.fsys, resyncName, 64)
	if err != nil {
		return fmt.Errorf("read %s: %w", resyncName, err)
	}
	r.mustSync.Store(len(marker) > 0)
	bad := 0
	read := newVerifier(r.cfg.Network, func(st *stmt.Statement, read *reading, err error) {
		if err == nil {
			_, err = r.state.applyRead(st, read, time.Time{})
		}
		if err != nil && !benign(err) {
			bad++
		}
	})
	r.log, err = openLog(r.fsys, read.add, func(how Recovery, cause error) error {
		read.finish()
		return r.lost(how, cause)
	})
	read.finish()
	if err != nil {
		return err
	}
	if err := r.loadAgeing(); err != nil {
		return err
	}
	r.state.collect = true
	r.takeOmitted()
	r.takeDoubled()
	clear(r.doubled.counts) // those of earlier runs
	if bad > 0 {
		r.cfg.Logger.Warn("state log held statements that do not verify in this network", "count", bad)
	}
	if r.mustSync.Load() {
		r.cfg.Logger.Warn("state was lost: this node decides nothing before it has synchronised with a peer; "+
			"if it is the last node of its network, remove the file and restart", "file", filepath.Join(r.cfg.Dir, resyncName))
	}
	return nil
}

// resyncName is a file that is not empty from when state was found lost until a
// session with a peer, over restarts.
const resyncName = "resync"

// lost is told of a log that is not whole, before it is changed.
func (r *Replica) lost(how Recovery, cause error) error {
	r.recovery = how
	if how == LogCut {
		r.cfg.Logger.Warn("state log is damaged and cut there; peers will fill in what is missing", "kept", cutName, "err", cause)
	}
	// A first start has lost nothing. Nor is there anybody to ask when what was
	// before the damage, where members come first, knows of no other node: then
	// a torn tail, as every loss of power may leave, must not stop the network.
	if how == LogAbsent && !r.cfg.Returning && r.own.stored == 0 || how == LogCut && !r.state.knowsOthers(r.key) {
		return nil
	}
	r.mustSync.Store(true)
	return writeAtomic(r.fsys, resyncName, func(w io.Writer) error {
		_, err := io.WriteString(w, "state was lost\n")
		return err
	})
}

// recovered notes that a session has made good what was lost.
func (r *Replica) recovered() {
	if !r.mustSync.CompareAndSwap(true, false) {
		return
	}
	if err := writeAtomic(r.fsys, resyncName, func(io.Writer) error { return nil }); err != nil {
		r.cfg.Logger.Warn("the next start will wait for a peer again", "err", err)
	}
}

// Recovered says how Open found the log. What was lost of it is made good by the
// first session with a peer; [Replica.Synced] waits for that.
func (r *Replica) Recovered() Recovery { return r.recovery }

// SetTransport connects the replica; call it before Run, if the configuration
// did not.
func (r *Replica) SetTransport(g Gossip, s Streams) { r.cfg.Gossip, r.cfg.Streams = g, s }

// Close ends a Replica that does not Run: what was merged is flushed to disk.
// Further calls do nothing.
func (r *Replica) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	r.flushOmitted()
	r.flushDoubled()
	err := r.log.close()
	if r.lock != nil {
		err = errors.Join(err, r.lock.Close())
	}
	return err
}

// View returns the current state.
func (r *Replica) View() *View {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.View()
}

// Watch yields the current View and then, after changes, the latest one: a slow
// reader misses what lies between and never gets an older View. The channel is
// closed when ctx ends.
func (r *Replica) Watch(ctx context.Context) <-chan *View {
	out := make(chan *View, 1)
	go func() {
		defer close(out)
		for {
			r.mu.Lock()
			v, changed := r.state.View(), r.changed
			r.mu.Unlock()
			select { // drop the one not yet read
			case <-out:
			default:
			}
			out <- v // this goroutine alone sends: there is room
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// Synced returns a channel that is closed once an anti-entropy session that began
// at since or later, by cfg.Boot, has ended well, or when Run has found nobody to
// hold one with for 30 seconds after since, or for 5 when it has never held one
// and there is no peer. Until then a node that started (0) or slept (since when it
// woke) knows only what it remembers. When that is not all it had, because the log
// was cut or is gone, nothing but a session closes the channel. Run begins
// sessions with all peers at once when it is asked for more recent than it holds.
func (r *Replica) Synced(since time.Duration) <-chan struct{} { return r.fresh.wait(since) }

// Stats returns counts for metrics.
func (r *Replica) Stats() Stats {
	r.mu.Lock()
	held, pending := r.state.ids.len(), r.state.Pending()
	doubled := maps.Clone(r.doubled.counts)
	r.mu.Unlock()
	by, refused := r.stats.refusals.counts()
	return Stats{
		Applied: r.stats.applied.Load(), Refused: refused, RefusedBy: by,
		Sessions: r.stats.sessions.Load(), FailedSessions: r.stats.failedSessions.Load(),
		Sent: r.stats.sent.Load(), Received: r.stats.received.Load(),
		Equivocations: doubled, Held: held, Pending: pending, LogBytes: r.log.bytes(),
	}
}

// OwnerStatements returns the raw statements of an owner: what an [Author]
// starts from. Do not modify the byte slices.
func (r *Replica) OwnerStatements(owner stmt.Key) [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.OwnerStatements(owner)
}

// merge applies statements from a peer and appends the news to the log, to be
// synced in a group. news are those that changed the state, and those that had
// waited for them; err is the first error that is more than a difference of
// knowledge. The rest is applied anyway, and the peer named for what is refused.
func (r *Replica) merge(from peer.ID, raws [][]byte, now time.Time) (news []*stmt.Statement, err error) {
	var refused [reasons]error
	note := func(e error) {
		if e == nil {
			return
		}
		reason := reasonOf(e)
		r.stats.refusals[reason].Add(1)
		if refused[reason] == nil {
			refused[reason] = e
		}
		if err == nil && !transient(e) {
			err = e
		}
	}
	sts := make([]*stmt.Statement, 0, len(raws))
	for _, raw := range raws {
		// The state keeps the bytes, and the message they come in is larger.
		st, perr := stmt.Peek(slices.Clone(raw), r.cfg.Network)
		if note(perr); perr == nil {
			sts = append(sts, st)
		}
	}
	r.mu.Lock()
	sts = slices.DeleteFunc(sts, func(st *stmt.Statement) bool {
		news, serr := r.state.isNews(st)
		if note(serr); !news {
			r.noticeOwn(st, serr)
		}
		return !news
	})
	r.mu.Unlock()
	// Signatures are most of the work: nobody waits for it.
	sts = slices.DeleteFunc(sts, func(st *stmt.Statement) bool {
		serr := st.CheckSignature()
		note(serr)
		return serr != nil
	})
	r.mu.Lock()
	for _, st := range sts {
		note(r.apply(st, now))
	}
	news = r.record()
	r.mu.Unlock()
	for reason, rerr := range refused {
		if rerr != nil {
			r.accuse(from, Reason(reason), rerr)
		}
	}
	return news, err
}

// apply applies one verified statement; under mu.
func (r *Replica) apply(st *stmt.Statement, now time.Time) error {
	_, err := r.state.applyNews(st, now)
	r.noticeOwn(st, err)
	return err
}

func transient(err error) bool {
	for _, e := range []error{ErrStale, ErrNotMember, ErrPending, ErrQuota, ErrFrozen} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
