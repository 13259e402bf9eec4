package store

import (
	"crypto/ed25519"
	"errors"

	"log/slog"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Errors that callers tell apart with errors.Is.
var (
	ErrNotFound   = errors.New("not found")  // the store knows nothing of that CID or name
	ErrIncomplete = errors.New("incomplete") // part of it is here; Fetch goes on
	ErrCorrupt    = errors.New("corrupt")    // bytes do not match their hash, signature, size or shape
	ErrLocked     = errors.New("store is in use by another process")
	ErrTooLarge   = errors.New("too large") // more than Config.MaxPack allows
	ErrNoPeer     = errors.New("no peer has it")
	ErrNoSpace    = errors.New("not enough disk space")
)

// Config of a store. Zero values take the documented default.
type Config struct {
	Dir      string        // created with mode 0700 if absent
	Fetcher  Fetcher       // may be nil, and may be set later by SetFetcher
	MaxPack  int64         // bytes of a pack with its base; default 256 GiB
	Grace    time.Duration // GC leaves images alone that no pack refers to and that are younger; default 1 h
	Stall    time.Duration // without a block for so long another way is tried; default 10 s
	Recheck  time.Duration // chunks read through Blocks are hashed unless this process hashed their image so recently; default 1 h
	LockWait time.Duration // how long Open waits for another process; default 5 s
	Logger   *slog.Logger  // default: discard
}

// Progress of a fetch. Bytes count image bytes.
type Progress struct {
	Total   int64 // bytes of all images; 0 until the pack's nodes are here
	Done    int64 // bytes in place, however they came
	Fetched int64 // of them, from peers by this fetch
	Local   int64 // of them, copied from other images of this store
	Blocks  int64 // leaves from peers by this fetch
	Peers   int   // peers giving at this moment
}

// FetchOptions of one Fetch.
type FetchOptions struct {
	From     []peer.ID      // asked first, before and beside what the network finds
	Progress func(Progress) // called a few times a second from one goroutine; nil: none
	Bitswap  bool           // leaves by bitswap only
	NoPin    bool           // leave pins as they are: the caller has GC keep the pack
}

// Info is a pack or base as List shows it.
type Info struct {
	CID      cid.Cid
	Kind     string // pack | base
	Name     string
	Author   ed25519.PublicKey
	Base     cid.Cid // of a pack
	Size     int64   // bytes of its images, its base's included
	Pinned   bool
	Complete bool
	Added    time.Time
}

// Name is a local name of a base.
type Name struct {
	Name      string
	CID       cid.Cid
	Publisher ed25519.PublicKey // nil: set on this machine
	Set       time.Time
}
