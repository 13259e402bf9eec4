package api

import (
	"net/http"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// How somebody on the mesh is reached at this moment: straight at an address of
// its own, straight through a hole in a NAT, by a stream to its host, by one
// through another host, or not.
const (
	PathDirect  = "direct"
	PathPunched = "punched"
	PathStream  = "stream"
	PathRelayed = "relayed"
	PathNone    = "none"
)

// Mesh is the answering node's part in formnet.
type Mesh struct {
	Interface string     `json:"interface"`        // the machine's own; "": it has none
	Reason    string     `json:"reason,omitempty"` // why not, or what is wrong with it
	Key       string     `json:"mesh_key"`         // WireGuard public key
	Address   string     `json:"address"`          // IPv4 that the node claims; "": none
	Address6  string     `json:"address6"`
	Port      int        `json:"port"`     // UDP, also of QUIC
	InTheWay  []string   `json:"overlaps"` // prefixes that the machine reaches otherwise
	Guests    int        `json:"guests"`   // of this node that are on the mesh
	Peers     []MeshPeer `json:"peers"`    // of the machine's own interface
	Hosts     []MeshHost `json:"hosts"`    // with which datagrams were exchanged lately, its guests' too
}

// MeshPeer is a peer of the machine's own interface.
type MeshPeer struct {
	Name      string     `json:"name"` // a device's; "": none
	Kind      string     `json:"kind"` // node or device
	Node      stmt.Key   `json:"node,omitzero"`
	Owner     stmt.Key   `json:"owner,omitzero"` // of a device
	Key       string     `json:"mesh_key"`
	Address   string     `json:"address"` // IPv4; "": none
	Address6  string     `json:"address6"`
	Path      string     `json:"path"`
	Endpoint  string     `json:"endpoint"`        // where datagrams go straight; "": they do not
	Latency   float64    `json:"latency_seconds"` // of the straight path; 0: not known
	Handshake *time.Time `json:"handshake"`       // the last one
	Received  int64      `json:"received_bytes"`
	Sent      int64      `json:"sent_bytes"`
}

// MeshHost is how datagrams travel to a host, or to the device of a user.
type MeshHost struct {
	Host     stmt.Key `json:"host"`
	Path     string   `json:"path"`
	Endpoint string   `json:"endpoint"`
	Latency  float64  `json:"latency_seconds"`
	Idle     float64  `json:"idle_seconds"` // since the last datagram
}

func (s *server) mesh(w http.ResponseWriter, _ *http.Request) error { return reply(w, s.Mesh()) }
