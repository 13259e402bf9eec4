package names

import (
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multibase"

	"github.com/formthefog/formation/crdt/stmt"
)

// reference is the label as the libraries of IPFS write it.
func reference(k stmt.Key) (string, error) {
	return cid.Cid(peer.ToCid(peer.ID(k.PeerID()))).StringOfBase(multibase.Base36)
}
