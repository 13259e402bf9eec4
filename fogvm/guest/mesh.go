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
)

// News is signed statements that the guest looks at by itself: it takes nothing
// from its host's word. A round is all that there is now; what was claimed in an
// earlier one and is not told again does not count any more.
type News struct {
	Statements [][]byte `json:"statements,omitempty"`
	End        bool     `json:"end,omitempty"` // of the round
}

// MeshReport is the guest's answer to a round.
type MeshReport struct {
	Peers   int    `json:"peers"`
	Held    int    `json:"held"`              // statements
	Refused uint64 `json:"refused,omitempty"` // since the guest booted
	Problem string `json:"problem,omitempty"` // the latest reason; as Status.Reason
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
	if len(n.Statements) > MaxNews || size > maxNewsBytes {
		return News{}, fmt.Errorf("%w: news of %d statements, %d bytes", ErrFrame, len(n.Statements), size)
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
	m.Problem = ClipReason(m.Problem)
	return m, nil
}

// TellRound writes a round of news and reads the answer.
func TellRound(rw io.ReadWriter, statements [][]byte) (MeshReport, error) {
	for len(statements) > 0 {
		n := min(len(statements), MaxNews)
		if err := WriteNews(rw, News{Statements: statements[:n]}); err != nil {
			return MeshReport{}, err
		}
		statements = statements[n:]
	}
	if err := WriteNews(rw, News{End: true}); err != nil {
		return MeshReport{}, err
	}
	return ReadMeshReport(rw)
}
