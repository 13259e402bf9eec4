package guest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/formthefog/formation/crdt/stmt"
)

// The mesh's datagrams leave and enter the guest by its NIC: to whoever is in
// MeshVirtual, whom the host finds by a table of its own.
const (
	// MeshPort is the UDP port at which the guest's WireGuard listens.
	MeshPort = 51820
	// MeshMTU is what the mesh carries over unknown paths.
	MeshMTU = 1280
	// MeshInterface is its name in the guest.
	MeshInterface = "wg0"
	// MaxLocations is how many peers' places a guest is told.
	MaxLocations = 1024
)

// MeshVirtual is where the guest's peers are as the guest sees it (RFC 2544: on
// no network).
var MeshVirtual = netip.MustParsePrefix("198.18.0.0/15")

// MeshConfig is who the guest is on the mesh, beside Config.Instance and
// Config.Slot. What a guest is told first stays so for the life of its disk.
type MeshConfig struct {
	Network string   `json:"network"` // its name
	Root    stmt.Key `json:"root"`    // zero: an open network
	Owner   stmt.Key `json:"owner"`
	Node    stmt.Key `json:"node"` // that runs the guest

	stmt.Settings // of the network
}

// Location is where a peer can be reached.
type Location struct {
	Key string         `json:"key"` // as Status.MeshKey
	At  netip.AddrPort `json:"at"`  // in MeshVirtual
}

// Mesh makes the guest a peer on the mesh. Methods are called from several
// goroutines; the others may come before Start.
type Mesh interface {
	// Start joins as the configuration says. It returns at once with the public
	// key, and works until ctx ends; problem is told, also later, what is wrong:
	// "" when nothing is any more.
	Start(ctx context.Context, cfg Config, problem func(string)) (key string, err error)
	// Locate says where peers are, all that is known.
	Locate(where []Location)
	// Hear takes a stream of News until ctx or the stream ends.
	Hear(ctx context.Context, stream net.Conn) error
}

// Bounds of one message of news.
const (
	MaxNews      = 16 // statements
	maxNewsBytes = MaxNews * stmt.MaxStatement
	// MaxGone is how many statements one message says are gone, and MaxAgain how
	// many a guest asks for again.
	MaxGone  = 256
	MaxAgain = 256
)

// News is signed statements that the guest looks at by itself: it takes nothing
// from its host's word. A round is all that there is now, or what has come and gone
// since the round before it on the same stream; what was claimed and is no part of
// what there is does not count any more.
type News struct {
	Statements [][]byte `json:"statements,omitempty"`
	Gone       []Name   `json:"gone,omitempty"`  // in a round that is Since
	End        bool     `json:"end,omitempty"`   // of the round
	Since      bool     `json:"since,omitempty"` // with End: it was what has changed
}

// MeshReport is the guest's answer to a round.
type MeshReport struct {
	Peers   int    `json:"peers"`
	Held    int    `json:"held"`              // statements
	Refused uint64 `json:"refused,omitempty"` // since the guest booted
	Problem string `json:"problem,omitempty"` // the latest reason; as Status.Reason
	// Sum is over the names of what there is, as the guest was told; zero: it is to
	// be told all in each round. Again are those of it that the guest does not hold.
	Sum   Name   `json:"sum,omitzero"`
	Again []Name `json:"again,omitempty"`
	All   bool   `json:"all,omitempty"` // there are more of those, or more than the guest remembers
}

// WriteNews writes one message.
func WriteNews(w io.Writer, n News) error { return writeJSON(w, n) }

// ReadNews reads one message.
func ReadNews(r io.Reader) (News, error) {
	var n News
	if err := readJSON(r, &n); err != nil {
		return News{}, err
	}
	size := 0
	for _, raw := range n.Statements {
		size += len(raw)
	}
	if len(n.Statements) > MaxNews || size > maxNewsBytes || len(n.Gone) > MaxGone || n.Since && !n.End {
		return News{}, fmt.Errorf("%w: news of %d statements, %d bytes, %d gone", ErrFrame, len(n.Statements), size, len(n.Gone))
	}
	return n, nil
}

// WriteMeshReport writes one message.
func WriteMeshReport(w io.Writer, m MeshReport) error {
	m.Problem = ClipReason(m.Problem)
	return writeJSON(w, m)
}

// ReadMeshReport reads one message; it is the guest's word, and bounded.
func ReadMeshReport(r io.Reader) (MeshReport, error) {
	var m MeshReport
	if err := readJSON(r, &m); err != nil {
		return MeshReport{}, err
	}
	if len(m.Again) > MaxAgain {
		return MeshReport{}, fmt.Errorf("%w: %d statements again", ErrFrame, len(m.Again))
	}
	m.Problem = ClipReason(m.Problem)
	return m, nil
}
