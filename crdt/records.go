package crdt

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Limits that every replica enforces on every author.
const (
	// MaxInstances is how many instances one owner may have.
	MaxInstances = 256
	// MaxOps is how many keys one spec statement may set (CONTRACT, Limits).
	MaxOps = 64
	// MaxValue is the largest encoded value of a spec key in bytes.
	MaxValue = 4 << 10
	// MaxClaim is the largest body of a claim in bytes.
	MaxClaim = 1 << 10
	// MaxClaimsPerNode is how many claim registers one node may have.
	// Tombstones of dropped claims count until their instance is deleted, or the
	// node raises the floor over them.
	MaxClaimsPerNode = 4096
	// MaxGeneration bounds Claim.Generation, so that the next one is no wrap.
	MaxGeneration = maxCounter
	// MaxDelegates is how many keys beside its owner's may change one instance.
	MaxDelegates = 8
	// MaxBasesPerPublisher is how many base names one key may publish.
	MaxBasesPerPublisher = 64
	// MaxReplicas bounds a slot number and Spec.Replicas (CONTRACT, Formfile).
	MaxReplicas = 64
	// MaxHolds is how many of Node.Holds are published.
	MaxHolds = 96
	// MaxAddrs is how many of Node.Addrs are published.
	MaxAddrs = 16
	// MaxVoters is how many Spec.Voters there may be.
	MaxVoters = 9
	// maxNode is the largest body of a node register that is published: with
	// what is around it, it fits a statement.
	maxNode = stmt.MaxStatement - 512
	// RerootChanges and RerootBytes are when an Author re-roots a document.
	RerootChanges = 64
	RerootBytes   = 16 << 10
	// rerootQuiet is how old the last change is, by its author's clock, when an
	// Author re-roots a document anyway: whoever worked on it at the same time has
	// been heard, and a document at rest is one statement.
	rerootQuiet = 10 * time.Minute
	// burstChanges is how many changes an Author makes of a document, and nobody
	// else, before each further one of its run re-roots it.
	burstChanges = 8
	// MaxDocBytes is how many bytes of statements of one epoch count before a
	// replica takes no further change of it.
	MaxDocBytes = 4 * RerootBytes
)

// Errors of [State.Apply] and what calls it; test with errors.Is. Errors may
// also wrap those of package stmt.
var (
	// ErrNotMember: nothing against the statement, but its author is not known
	// to be a member. It is kept aside, within bounds, until that changes.
	ErrNotMember = errors.New("crdt: author is not a member")
	// ErrPending: it depends on statements that have not arrived. It is kept
	// aside, within bounds, until they do.
	ErrPending = errors.New("crdt: statement waits for others")
	// ErrStale: superseded, deleted or revoked: it will never count again.
	ErrStale = errors.New("crdt: stale statement")
	// ErrQuota: the author is over one of the limits above.
	ErrQuota = errors.New("crdt: author is over its quota")
	// ErrInvalid: signed, but against the rules of its kind.
	ErrInvalid = errors.New("crdt: invalid statement")
	// ErrFrozen: the document is frozen because its owner equivocated, until
	// the owner publishes a higher epoch.
	ErrFrozen = errors.New("crdt: document frozen by equivocation")
	// ErrNotFound: no such instance.
	ErrNotFound = errors.New("crdt: no such instance")
	// ErrNoSecret: the instance has no secret of that name.
	ErrNoSecret = errors.New("crdt: no such secret")
)

// Phase is what an owner wants an instance to do.
type Phase string

// The wanted phases. A zero Phase reads as PhaseRunning.
const (
	PhaseRunning Phase = "running"
	PhaseStopped Phase = "stopped"
)

// Partition contracts: what a replica does when the swarm splits (DESIGN §5).
const (
	PartitionKeep         = "keep"          // goes on running
	PartitionStopMinority = "stop-minority" // stops where most of the voters are not seen
	PartitionFence        = "fence"         // one of them runs, by a lease that most of the voters grant
)

// ClaimPhase is what a node does with a slot it claims.
type ClaimPhase string

// The phases of a claim, in the order they are usually passed.
const (
	ClaimClaimed   ClaimPhase = "claimed"
	ClaimFetching  ClaimPhase = "fetching"
	ClaimLaunching ClaimPhase = "launching"
	ClaimRunning   ClaimPhase = "running"
	ClaimUnhealthy ClaimPhase = "unhealthy"
	ClaimDraining  ClaimPhase = "draining"
	ClaimStopped   ClaimPhase = "stopped"
	ClaimFailed    ClaimPhase = "failed"
)

// Spec is the desired state of one instance, as its owner's statements merge.
// The maps and slices of a Spec from a View are shared: do not modify them.
type Spec struct {
	ID    string   // 32 lower base32 characters, see InstanceID
	Owner stmt.Key // the only key whose statements count

	Name string // DNS label; not unique between owners
	Pack string // CID of the Formpack
	// Generation counts the changes that are merged in: equal statements give
	// an equal Generation, and every further change raises it. Only a freeze or
	// the loss of a same-epoch re-root can lower it.
	Generation  uint64
	Replicas    int // 0…MaxReplicas
	Phase       Phase
	Restart     uint64 // raised to have the replicas restarted, disks kept
	Recreate    uint64 // raised to have the replicas recreated with fresh disks
	VCPU        int
	MemoryBytes uint64
	DiskBytes   uint64
	Env         map[string]string
	SSHKeys     []string          // authorized_keys lines for every user
	Expose      []string          // "8080/tcp"
	Labels      map[string]string // a node must carry all of them
	Region      string            // a node must be there; "" = anywhere
	Operators   []stmt.Key        // node or operator keys that may run it; none = any
	Partition   string            // keep | stop-minority | fence; "" = keep
	// Voters are the nodes whose majority the other contracts than keep count: an
	// odd number of at most MaxVoters, all different.
	Voters []stmt.Key
	// Term is how often the voters of the instance were replaced: an Author
	// raises it with every change of Voters.
	Term uint64
	GPU  string // "model[:n]"; "" = none

	// Delegates are keys beside the owner's that may change the instance, but not
	// delete it, nor say who its delegates are. An Author sorts them.
	Delegates []stmt.Key

	// Unknown holds the keys this version does not know, as canonical CBOR.
	// An Author keeps them.
	Unknown map[string][]byte
	// Critical lists the keys that the owner marked critical and this version
	// does not know: a node must not claim such an instance.
	Critical []string
	// Frozen: the owner signed two contents for one change. The spec reads as
	// the last epoch's root until the owner publishes a higher epoch.
	Frozen bool
	// Epoch is the document's epoch, raised by every re-root.
	Epoch uint64
}

// Resources are total or free capacity.
type Resources struct {
	CPUs   int    // virtual CPUs
	Memory uint64 // bytes
	Disk   uint64 // bytes
}

// Node is what a node says of itself: a register that only Key may write.
type Node struct {
	Key      stmt.Key
	Addrs    []string // full multiaddrs with /p2p/, the best first; MaxAddrs are published
	Total    Resources
	Labels   map[string]string
	Region   string
	Version  string
	Accel    string // kvm | tcg
	GPU      string // "model:n"; "" = none
	Draining bool
	Restarts uint64
	Holds    []string // pack and base CIDs complete here; at most MaxHolds are published, fewer when they do not fit
	// Operator is the operator key that the root's member statement names; it
	// is filled by the View and ignored by SetNode.
	Operator stmt.Key
	// Operators is the raw statement by which the node names those who may take it
	// out ([stmt.OperatorsOf]); nil: nobody but the root.
	Operators []byte
	// Named are the keys in Operators; filled by the View and ignored by SetNode.
	Named []stmt.Key
	// MeshKey is the WireGuard public key of the node's own device, zero when it has
	// none. Address4 is the IPv4 address that it claims on the mesh; it is not known
	// to be its own. The zero Addr: nothing.
	MeshKey  stmt.Key
	Address4 netip.Addr
	// Epoch (boot) and Seq order the register; filled by the Replica.
	Epoch, Seq uint64
}

// Claim is what one node says about one slot of one instance: a register that
// only Node may write. Encoded it is at most MaxClaim bytes.
type Claim struct {
	Node     stmt.Key
	Instance string
	// Owner is whose instance the node takes it for; a claim that names another
	// than the spec's owner does not count. SetClaims fills it when it is zero.
	Owner      stmt.Key
	Slot       int    // 0…MaxReplicas-1
	Generation uint64 // fencing: of two claims the higher (Generation, Node) wins
	Phase      ClaimPhase
	Ready      bool
	Reason     string // one line for people; at most 256 bytes are published
	Pack       string // CID it runs or is getting
	Address    string
	Address6   string
	MeshKey    string
	SSHHostKey string // "ssh-ed25519 AAAA…", born in the guest
	Endpoint   string
	Accel      string
	// SpecGeneration is the Spec.Generation this claim has acted on.
	SpecGeneration uint64
	StartedAt      int64 // Unix seconds, 0 = not yet
	ReadyAt        int64 // Unix seconds, 0 = not yet
	// Epoch (boot) and Seq order the register; filled by the Replica.
	Epoch, Seq uint64
}

// Base is a publisher's name for a base.
type Base struct {
	Publisher stmt.Key
	Name, CID string
	Epoch     uint64
	Seq       uint64
}

// DocID is the binary form of an instance ID.
type DocID [20]byte

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String returns the 32 characters that users see.
func (d DocID) String() string { return idEncoding.EncodeToString(d[:]) }

// UnmarshalCBOR accepts a byte string of exactly 20 bytes.
func (d *DocID) UnmarshalCBOR(b []byte) error {
	if len(b) != 21 || b[0] != 0x54 {
		return fmt.Errorf("%w: instance ID", ErrInvalid)
	}
	copy(d[:], b[1:])
	return nil
}

// ParseDocID is the inverse of [DocID.String]; errors wrap ErrInvalid.
func ParseDocID(s string) (DocID, error) {
	var d DocID
	if len(s) != idEncoding.EncodedLen(len(d)) {
		return d, fmt.Errorf("%w: instance ID %q", ErrInvalid, s)
	}
	b, err := idEncoding.DecodeString(s)
	if err != nil {
		return d, fmt.Errorf("%w: instance ID %q", ErrInvalid, s)
	}
	return DocID(b), nil
}

// InstanceID returns the ID of the counter-th instance that device makes for
// owner: the first 20 bytes of SHA-256 over a tag, the two keys and the
// counter. Every spec statement names device and counter, so anyone checks in
// O(1) that the instance is its author's.
func InstanceID(owner, device stmt.Key, counter uint64) DocID {
	h := sha256.New()
	h.Write([]byte("formation/instance/1\x00"))
	h.Write(owner[:])
	h.Write(device[:])
	h.Write(binary.BigEndian.AppendUint64(nil, counter))
	return DocID(h.Sum(nil)[:20])
}
