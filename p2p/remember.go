package p2p

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/formthefog/formation/store/whole"
)

const (
	peersFile    = "peers.json"
	peersVersion = 1
	// maxPeersFile is several times what maxBook peers take.
	maxPeersFile = 1 << 20
)

type peersJSON struct {
	Version int        `json:"version"`
	Network string     `json:"network"`
	Peers   []peerJSON `json:"peers"`
}

type peerJSON struct {
	ID    peer.ID   `json:"id"`
	Addrs []string  `json:"addrs"`
	Seen  time.Time `json:"seen"`
}

// remembered lists what is worth keeping of the book, most recently seen first.
func (b *book) remembered(now time.Time) []peerJSON {
	var met []*entry
	for _, e := range b.entries {
		if e.met && len(e.addrs) > 0 {
			if e.connected {
				e.seen = now
			}
			met = append(met, e)
		}
	}
	slices.SortFunc(met, func(x, y *entry) int { return -cmpWorth(x, y) })
	out := make([]peerJSON, 0, len(met))
	for _, e := range met {
		p := peerJSON{ID: e.id, Seen: e.seen.UTC().Truncate(time.Second)}
		for _, a := range e.addrs {
			p.Addrs = append(p.Addrs, a.String())
		}
		out = append(out, p)
	}
	return out
}

// recall puts remembered peers into the book.
func (b *book) recall(peers []peerJSON) error {
	var errs []error
	for i, p := range peers {
		if i == maxBook {
			errs = append(errs, fmt.Errorf("more than %d peers", maxBook))
			break
		}
		pi := peer.AddrInfo{ID: p.ID}
		for _, s := range p.Addrs[:min(len(p.Addrs), maxAddrs)] {
			a, err := ma.NewMultiaddr(s)
			if err != nil {
				errs = append(errs, fmt.Errorf("address of %s: %w", p.ID, err))
				continue
			}
			pi.Addrs = append(pi.Addrs, a)
		}
		if len(pi.Addrs) == 0 || p.ID.Validate() != nil {
			continue
		}
		if e := b.add(pi); e != nil {
			e.met, e.seen = true, p.Seen
		}
	}
	return errors.Join(errs...)
}

// loadPeers reads the file of a folder. A file that is absent, or of another
// network, holds nobody.
func loadPeers(dir, network string) ([]peerJSON, error) {
	f, err := os.Open(filepath.Join(dir, peersFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load remembered peers: %w", err)
	}
	defer f.Close() // only read
	raw, err := io.ReadAll(io.LimitReader(f, maxPeersFile+1))
	if err != nil {
		return nil, fmt.Errorf("load remembered peers: %w", err)
	}
	if len(raw) > maxPeersFile {
		return nil, fmt.Errorf("load remembered peers: %s: %w", f.Name(), ErrTooLarge)
	}
	var j peersJSON
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, fmt.Errorf("load remembered peers: %s: %w", f.Name(), err)
	}
	if j.Version != peersVersion || j.Network != network {
		return nil, nil
	}
	return j.Peers, nil
}

// savePeers replaces the file in one step.
func savePeers(dir, network string, peers []peerJSON) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save remembered peers: %w", err)
		}
	}()
	raw, err := json.MarshalIndent(peersJSON{Version: peersVersion, Network: network, Peers: peers}, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return whole.Write(filepath.Join(dir, peersFile), append(raw, '\n'), 0o600)
}
