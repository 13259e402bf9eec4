package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	bolt "go.etcd.io/bbolt"
)

// Defaults of Config.
const (
	defaultMaxPack  = 64 << 30
	defaultGrace    = time.Hour
	defaultStall    = 10 * time.Second
	defaultRecheck  = time.Hour
	defaultLockWait = 5 * time.Second
)

// Store keeps packs in one folder. Make it with Open.
type Store struct {
	cfg    Config
	log    *slog.Logger
	disk   disk
	db     *bolt.DB
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	work   sync.WaitGroup // fetches and announcements

	// mu is never held during a database transaction or a transfer; the other
	// way round is allowed.
	mu      sync.Mutex
	closed  bool
	fetcher Fetcher
	jobs    map[cid.Cid]*job          // fetches in flight by root
	claims  map[cid.Cid]chan struct{} // entries being made; closed when done
	parts   map[cid.Cid]*part         // entries being fetched, served while they arrive
	trees   treeCache
	hashed  map[uint32]time.Time // when this process last hashed the whole of an image
}

// Open opens or creates the store of a folder, and cleans up what a crash left.
// ErrLocked if another process has it.
func Open(cfg Config) (*Store, error) {
	if cfg.Dir == "" {
		return nil, errors.New("store: Dir is required")
	}
	orDefault(&cfg.MaxPack, defaultMaxPack)
	orDefault(&cfg.Grace, defaultGrace)
	orDefault(&cfg.Stall, defaultStall)
	orDefault(&cfg.Recheck, defaultRecheck)
	orDefault(&cfg.LockWait, defaultLockWait)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// Hypervisors run as other users: they may open an image whose path they
	// are told, and list nothing.
	for _, d := range []string{cfg.Dir, filepath.Join(cfg.Dir, "images")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	db, err := openDB(cfg.Dir, cfg.LockWait)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Store{
		cfg: cfg, log: cfg.Logger, disk: realDisk, db: db, ctx: ctx, cancel: cancel, fetcher: cfg.Fetcher,
		jobs: map[cid.Cid]*job{}, claims: map[cid.Cid]chan struct{}{}, parts: map[cid.Cid]*part{},
		hashed: map[uint32]time.Time{},
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), s.Close())
	}
	return s, nil
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Close ends fetches, waits for them, and releases the folder.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// SetFetcher sets the network for fetches that start from now on.
func (s *Store) SetFetcher(f Fetcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fetcher = f
}

// noteHashed remembers that an image has just been read and found right.
func (s *Store) noteHashed(image uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hashed[image] = time.Now()
}

// lately says whether an image was found right so recently that its chunks need
// not be hashed again.
func (s *Store) lately(image uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, ok := s.hashed[image]
	return ok && time.Since(at) < s.cfg.Recheck
}

func (s *Store) imagePath(root cid.Cid) string {
	return filepath.Join(s.cfg.Dir, "images", root.String()+".img")
}

func (s *Store) partPath(root cid.Cid) string {
	return filepath.Join(s.cfg.Dir, "images", root.String()+".part")
}

// recover makes files and records agree after a crash: an image renamed but not
// recorded as whole is a part again, a file nobody recorded goes, and a record
// without its file goes with its index.
func (s *Store) recover() error {
	var records []imageRecord
	err := s.db.View(func(tx *bolt.Tx) error {
		return eachImage(tx, func(r imageRecord) error { records = append(records, r); return nil })
	})
	if err != nil {
		return err
	}
	known := map[string]bool{}
	lost := map[uint32]bool{}
	for _, r := range records {
		e, err := r.entry()
		if err != nil {
			return err
		}
		img, part := s.imagePath(e.Root), s.partPath(e.Root)
		if !r.Whole {
			if err := os.Rename(img, part); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			known[part] = true
			if _, err := os.Stat(part); errors.Is(err, fs.ErrNotExist) {
				lost[r.id] = true
			}
			continue
		}
		known[img] = true
		if st, err := os.Stat(img); err != nil || st.Size() != r.Size {
			s.log.Warn("image file is gone or changed; forgetting it", "entry", e.Root, "err", err)
			lost[r.id] = true
			delete(known, img)
		}
	}
	if err := s.forget(lost); err != nil {
		return err
	}
	return s.sweepFiles(known)
}

// sweepFiles removes files of the images folder that are not known.
func (s *Store) sweepFiles(known map[string]bool) error {
	dir := filepath.Join(s.cfg.Dir, "images")
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		p := filepath.Join(dir, f.Name())
		ours := strings.HasSuffix(p, ".img") || strings.HasSuffix(p, ".part") || strings.HasSuffix(p, ".tmp")
		if ours && !known[p] {
			if err := os.Remove(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget deletes the records of images and their index.
func (s *Store) forget(images map[uint32]bool) error {
	if len(images) == 0 {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error { return forgetImages(tx, images) })
}

func forgetImages(tx *bolt.Tx, images map[uint32]bool) error {
	for id := range images {
		var r imageRecord
		if err := getRecord(tx, bImages, imageKey(id), &r); err != nil {
			return err
		}
		if err := tx.Bucket(bImages).Delete(imageKey(id)); err != nil {
			return err
		}
		if err := tx.Bucket(bByRoot).Delete(r.Root); err != nil {
			return err
		}
	}
	return dropLeaves(tx, images)
}
