// Package api is the HTTP API of formd: its JSON types, the handler that
// serves it and the client that calls it. The same handler answers on the unix
// socket and on libp2p streams of protocol Proto.
//
// Guarantees: reads show public, signed state only; writes carry statements
// that were signed elsewhere, so nothing that passes through here can be
// forged; a body is at most MaxBody bytes; every error is a Problem with the
// exit code the command line should end with.
//
// Not guaranteed: that a read is the newest state of the swarm (it is what this
// node holds), nor that an accepted statement has reached another node.
//
// Who calls is decided by the transport, never by a header: see Caller.
package api

import (
	"net/netip"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

const (
	// Proto is the bare libp2p protocol name the API is served on.
	Proto = "api/1"
	// ProtoPublic carries what strangers send to a public port of a guest
	// (PublicRequest first), from the node where they came in.
	ProtoPublic = "public/1"
	// ProtoProxy carries raw bytes to a guest's TCP port (ProxyRequest first).
	ProtoProxy = "proxy/1"
	// ProtoExec carries a command's standard streams (ExecRequest first).
	ProtoExec = "exec/1"
	// MaxBody bounds a request body and every non-streamed response, in bytes.
	MaxBody = 1 << 20
)

// Status words of an instance, as `form manage get status` prints them.
const (
	StatusPending = "PENDING"
	StatusSuccess = "SUCCESS"
	StatusFailure = "FAILURE"
)

// Instance is one instance as a user sees it. The first level is the stable
// contract of `--json`; Spec adds what its owner asked for.
type Instance struct {
	ID         string      `json:"id"`
	Name       string      `json:"name"`
	Owner      stmt.Key    `json:"owner"`
	Pack       string      `json:"pack"`
	Generation uint64      `json:"generation"`
	Status     string      `json:"status"` // PENDING, SUCCESS or FAILURE
	Reason     string      `json:"reason"`
	Desired    Desired     `json:"desired"`
	Replicas   []Replica   `json:"replicas"` // sorted by slot, then node; never null
	Public     []PublicURL `json:"public"`   // never null
	Spec       Spec        `json:"spec"`
	Omitted    []Omitted   `json:"omitted,omitempty"` // of one instance only: the latest last
}

// PublicURL is a URL by which everybody reaches an instance, as the nodes that are
// an ingress say of themselves: of https, http, tcp or udp.
type PublicURL struct {
	URL       string     `json:"url"`
	Nodes     []stmt.Key `json:"nodes"`     // that serve it
	Addresses []string   `json:"addresses"` // theirs, where they are known; never null
}

// Omitted is a change of an instance that does not count, because a later epoch of
// its document began without it.
type Omitted struct {
	ID       string    `json:"id"`
	Author   stmt.Key  `json:"author"`
	Epoch    uint64    `json:"epoch"`
	SignedAt time.Time `json:"signed_at"`
	FoundAt  time.Time `json:"found_at"`
	Keys     []string  `json:"keys"` // what it set
}

// Desired is what the owner asked for, in short.
type Desired struct {
	Replicas int    `json:"replicas"`
	Phase    string `json:"phase"` // running or stopped
}

// Spec is what the owner asked for beyond Desired. Sizes are bytes.
type Spec struct {
	Restart     uint64            `json:"restart"`
	VCPU        int               `json:"vcpu"`
	MemoryBytes uint64            `json:"memory_bytes"`
	DiskBytes   uint64            `json:"disk_bytes"`
	Env         map[string]string `json:"env,omitempty"`
	SSHKeys     []string          `json:"ssh_keys,omitempty"`
	Expose      []string          `json:"expose,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Region      string            `json:"region,omitempty"`
	Operators   []stmt.Key        `json:"operators,omitempty"`
	Partition   string            `json:"partition,omitempty"`
	Voters      []stmt.Key        `json:"voters,omitempty"` // whose majority the partition contract counts
	GPU         string            `json:"gpu,omitempty"`
	Delegates   []stmt.Key        `json:"delegates,omitempty"` // keys beside the owner's that may change it
	// Frozen: two contents were signed for one change. All of this is as its epoch
	// began, until the owner begins the next one by a change.
	Frozen bool `json:"frozen,omitempty"`
}

// Replica is one node's claim on a slot. What is not known yet is null.
type Replica struct {
	Node       stmt.Key   `json:"node"`
	Slot       int        `json:"slot"`
	Phase      string     `json:"phase"`
	Ready      bool       `json:"ready"`
	Reason     string     `json:"reason"`
	Pack       string     `json:"pack"`
	Address    *string    `json:"address"`
	Address6   *string    `json:"address6"`
	MeshKey    *string    `json:"mesh_key"`
	SSHHostKey *string    `json:"ssh_host_key"` // "ssh-ed25519 AAAA…", born in the guest
	Endpoint   *string    `json:"endpoint"`
	Accel      *string    `json:"accel"` // kvm, tcg or fake
	StartedAt  *time.Time `json:"started_at"`
	ReadyAt    *time.Time `json:"ready_at"`
	// Live is what the answering node's own probes say of the replica's node:
	// alive, suspect, dead or unknown. A hint, never authority.
	Live string `json:"live"`
}

// Node is one machine of the swarm.
type Node struct {
	Key       stmt.Key          `json:"key"`
	Addrs     []string          `json:"addrs"` // multiaddrs that end in /p2p/<key>
	CPUs      int               `json:"cpus"`
	Memory    uint64            `json:"memory_bytes"`
	Disk      uint64            `json:"disk_bytes"`
	Labels    map[string]string `json:"labels"`
	Region    string            `json:"region"`
	Version   string            `json:"version"`
	Accel     string            `json:"accel"`
	Draining  bool              `json:"draining"`
	Restarts  uint64            `json:"restarts"`
	Live      string            `json:"live"` // alive, suspect, dead, unknown; self is alive
	Self      bool              `json:"self"`
	Instances int               `json:"instances"` // claims it holds
	Holds     []string          `json:"holds"`     // CIDs complete there
	// Operator is whom it belongs to by the root's word; zero: nobody.
	Operator stmt.Key `json:"operator,omitzero"`
	// Operators are the keys that may take it out of the network, and Operated is
	// the raw statement by which it names them.
	Operators []stmt.Key `json:"operators"`
	Operated  []byte     `json:"operated,omitempty"`
	// Equivocations are what the answering node can prove: two contents that the
	// node has signed under one number. Its key is used twice, or it lies.
	Equivocations []Equivocation `json:"equivocations"`
}

// Equivocation is one thing of which a key has signed two contents.
type Equivocation struct {
	Kind    string    `json:"kind"` // node or claim
	Epoch   uint64    `json:"epoch"`
	Seq     uint64    `json:"seq"`
	FoundAt time.Time `json:"found_at"` // by the answering node's clock
}

// Network names the swarm a node belongs to.
type Network struct {
	Name  string   `json:"name"`
	ID    string   `json:"id"`    // hex of the 32-byte network ID
	Short string   `json:"short"` // as in protocol IDs
	Root  stmt.Key `json:"root"`
	Open  bool     `json:"open"` // no root: anyone is a member
	// Prefix4 is where the mesh has its IPv4 addresses, Zone what its names end in.
	Prefix4 string `json:"prefix4"`
	Zone    string `json:"zone"`
}

// Settings are what of the network's ID is beside name and root, as far as they can
// be read. An answering node may say an ID to which they do not lead.
func (n Network) Settings() stmt.Settings {
	s := stmt.Settings{Zone: n.Zone}
	if p, err := netip.ParsePrefix(n.Prefix4); err == nil {
		s.Prefix4 = p
	}
	return s
}

// NetworkID is what name, root and settings lead to.
func (n Network) NetworkID() stmt.NetworkID { return n.Settings().NetworkID(n.Name, n.Root) }

// Self is GET /v1/node: the answering node.
type Self struct {
	Node     Node     `json:"node"`
	Network  Network  `json:"network"`
	HasRoot  bool     `json:"has_root"` // holds the network's root key
	Accept   string   `json:"accept"`   // the --accept policy in its textual form
	API      string   `json:"api"`      // unix:///path, empty over libp2p
	Web      string   `json:"web"`      // host:port or off
	Metrics  string   `json:"metrics"`
	DataDir  string   `json:"data_dir"` // empty over libp2p
	Uptime   float64  `json:"uptime_seconds"`
	Warnings []string `json:"warnings"`
}

// Health is GET /v1/health.
type Health struct {
	OK      bool   `json:"ok"`
	Version string `json:"version"`
}

// Peer is one open connection of the answering node.
type Peer struct {
	ID        string   `json:"id"`
	Addrs     []string `json:"addrs"`
	Latency   float64  `json:"latency_seconds"`
	Direct    bool     `json:"direct"`
	Transport string   `json:"transport"`
	Role      string   `json:"role"` // node, client or unknown
	Owner     string   `json:"owner,omitempty"`
}

// Pack is one Formpack or base in the answering node's store.
type Pack struct {
	CID      string    `json:"cid"`
	Kind     string    `json:"kind"` // pack or base
	Name     string    `json:"name"`
	Base     string    `json:"base,omitempty"`
	Users    []string  `json:"users,omitempty"` // logins of a complete pack, the default one first
	Size     int64     `json:"size_bytes"`
	Complete bool      `json:"complete"`
	Pinned   bool      `json:"pinned"`
	AddedAt  time.Time `json:"added_at,omitzero"`
}

// FetchRequest asks a node to fetch a pack (and its base).
type FetchRequest struct {
	// From are peer IDs to ask first. Over libp2p the caller is always asked too.
	From []string `json:"from,omitempty"`
	// Pin keeps the pack until it is removed by hand. Unix socket only.
	Pin bool `json:"pin,omitempty"`
}

// FetchProgress is one progress event of a fetch. The last has Done set.
type FetchProgress struct {
	Stage string `json:"stage"` // root, base, image, done
	Bytes int64  `json:"bytes"` // verified so far, reused ones included
	Total int64  `json:"total_bytes"`
	Moved int64  `json:"moved_bytes"` // came over the network
	Done  bool   `json:"done"`
}

// Holders says which nodes hold a pack completely, by their signed registers,
// and how many the placement wants.
type Holders struct {
	CID   string     `json:"cid"`
	Nodes []stmt.Key `json:"nodes"`
	// Wanted is the number of nodes that should hold it for the live specs that
	// use it; 0 when no spec does.
	Wanted int `json:"wanted"`
}

// Base is a base name that resolves to a CID.
type Base struct {
	Name      string   `json:"name"`
	CID       string   `json:"cid"`
	Publisher stmt.Key `json:"publisher"`
	Local     bool     `json:"local"`   // complete in the answering node's store
	Trusted   bool     `json:"trusted"` // the answering node trusts the publisher
}

// BaseRequest names a base of the local store and publishes the name.
// Unix socket only.
type BaseRequest struct {
	Name string `json:"name"`
	CID  string `json:"cid"`
	// Path is a CAR file on the node's own disk to import first; optional.
	Path string `json:"path,omitempty"`
}

// InviteRequest asks for a ticket. Unix socket of a node that can invite only. A
// node without the root key has one invite to hand on: what is asked for must
// not be less than that. An open network has none, and takes no wishes.
type InviteRequest struct {
	Roles   []string `json:"roles,omitempty"`       // node, operator, owner; none: node and owner, or those of the invite
	Seconds int64    `json:"ttl_seconds,omitempty"` // 0: a day, or what is left of the invite
	Quota   Quota    `json:"quota,omitzero"`        // of each owner it admits
	// Operators are whom a node that joins by the ticket names as its own.
	Operators []stmt.Key `json:"operators,omitempty"`
}

// Quota bounds what one owner may have; zero is no bound.
type Quota struct {
	Instances int    `json:"instances,omitempty"`
	Replicas  int    `json:"replicas,omitempty"` // of all instances together, and so the next
	CPUs      int    `json:"cpus,omitempty"`
	Memory    uint64 `json:"memory,omitempty"` // bytes
	Disk      uint64 `json:"disk,omitempty"`   // bytes
}

// Invite is a ticket.
type Invite struct {
	Ticket  string    `json:"ticket"`
	Expires time.Time `json:"expires,omitzero"` // absent: never (an open network)
}

// SubmitRequest carries raw signed statements, at most MaxBody in all; they
// are applied in order, and each is checked by itself.
type SubmitRequest struct {
	Statements [][]byte `json:"statements"` // base64 in JSON
}

// SubmitResponse names the accepted statements, in order.
type SubmitResponse struct {
	IDs []string `json:"ids"`
}

// Statements is GET /v1/owners/{key}/statements, …/mesh and an instance's claims.
type Statements struct {
	Owner      stmt.Key `json:"owner"`
	Statements [][]byte `json:"statements"`
}

// Secret is what may be told of a secret of an instance; its value is in no
// answer of the API.
type Secret struct {
	Name  string     `json:"name"`
	SetAt time.Time  `json:"set_at"` // by its owner's clock
	Env   bool       `json:"env"`    // the entrypoint gets it as a variable too
	Nodes []stmt.Key `json:"nodes"`  // it is encrypted to, beside its owner
}

// Status is GET /v1/status: the swarm at a glance, as this node sees it.
type Status struct {
	Version    string         `json:"version"`
	Network    Network        `json:"network"`
	Self       stmt.Key       `json:"self"`
	Nodes      int            `json:"nodes"`
	NodesAlive int            `json:"nodes_alive"`
	Peers      int            `json:"peers"`
	Instances  map[string]int `json:"instances"` // by status word
	Replicas   map[string]int `json:"replicas"`  // by phase
	Local      int            `json:"local_vms"`
	Capacity   Capacity       `json:"capacity"`
}

// Capacity is a node's total and free resources, in cores and bytes.
type Capacity struct {
	CPUs       int    `json:"cpus"`
	Memory     uint64 `json:"memory_bytes"`
	Disk       uint64 `json:"disk_bytes"`
	FreeCPUs   int    `json:"free_cpus"`
	FreeMemory uint64 `json:"free_memory_bytes"`
	FreeDisk   uint64 `json:"free_disk_bytes"`
}

// Check is one line of GET /v1/doctor.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // ok, warn or fail
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"` // what to run or change
}

// Explain says why each slot of an instance is where it is.
type Explain struct {
	ID       string        `json:"id"`
	Name     string        `json:"name"`
	Status   string        `json:"status"`
	Reason   string        `json:"reason"`
	Eligible []ExplainNode `json:"eligible"`
	Excluded []ExplainNode `json:"excluded"` // with the reason
	Slots    []ExplainSlot `json:"slots"`
	Budget   ExplainBudget `json:"budget"` // of the answering node
}

// ExplainBudget is what the answering node has done lately of what it may do.
type ExplainBudget struct {
	Takeovers   int   `json:"takeovers"` // in the last minute
	Slots       int   `json:"takeovers_most"`
	RepairBytes int64 `json:"repair_bytes"` // in the last minute
	Bytes       int64 `json:"repair_bytes_most"`
	Moves       int   `json:"moves"` // in the last window
	MovesMost   int   `json:"moves_most"`
	Window      int64 `json:"window_seconds"` // how long another node must be preferred; below zero: nothing moves
}

// ExplainNode is one node's part in a placement.
type ExplainNode struct {
	Node   stmt.Key `json:"node"`
	Live   string   `json:"live"`
	Domain string   `json:"domain"` // what fails together with it; empty: it alone
	Weight uint64   `json:"weight"` // its share in the ranking
	Reason string   `json:"reason,omitempty"`
}

// ExplainSlot is the ranking of one slot, best first, and who claims it.
type ExplainSlot struct {
	Slot   int        `json:"slot"`
	Keeper *stmt.Key  `json:"keeper"` // whose it is
	Rank   []stmt.Key `json:"rank"`
	// Due is in how many seconds the answering node does something about it if
	// nothing changes; null: never.
	Due    *int64    `json:"due_seconds"`
	Why    []string  `json:"why"` // lines for people
	Claims []Replica `json:"claims"`
}

// LogLine is one line of a guest's log.
type LogLine struct {
	Slot int    `json:"slot"`
	Text string `json:"text"`
}

// Event is one change an owner may watch. Kind is one of instance.created,
// instance.changed, instance.deleted, replica.phase, replica.gone.
type Event struct {
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Instance string    `json:"instance,omitempty"`
	Node     string    `json:"node,omitempty"`
	Slot     int       `json:"slot"`
	Phase    string    `json:"phase,omitempty"`
	Detail   string    `json:"detail,omitempty"`
}

// NodeOperator is whom a node belongs to by the root's word.
type NodeOperator struct {
	Operator stmt.Key `json:"operator"` // zero: nobody
}

// Forgotten is a node that was taken out of the network.
type Forgotten struct {
	Node stmt.Key `json:"node"`
}

// DrainRequest is POST /v1/node/drain. Unix socket only.
type DrainRequest struct {
	Draining bool `json:"draining"`
}
