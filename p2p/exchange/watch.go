package exchange

import (
	"fmt"

	"github.com/ipfs/boxo/bitswap/message"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"
)

// watcher tells of peers whose bitswap messages no honest peer sends. The library
// bounds what such a message costs, and names nobody.
type watcher struct {
	broke func(p peer.ID, err error)
}

// MessageReceived implements tracer.Tracer.
func (w watcher) MessageReceived(from peer.ID, m message.BitSwapMessage) {
	list := m.Wantlist()
	if len(list) > maxQueuedWants {
		w.broke(from, fmt.Errorf("%w: %d wants in one message", ErrProtocol, len(list)))
		return
	}
	for _, e := range list {
		if e.Cid.Prefix().MhType == multihash.IDENTITY {
			w.broke(from, fmt.Errorf("%w: it wants what its CID holds", ErrProtocol))
			return
		}
	}
}

// MessageSent implements tracer.Tracer.
func (watcher) MessageSent(peer.ID, message.BitSwapMessage) {}
