package reconcile

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// State is the swarm's state; *crdt.Replica has these methods.
type State interface {
	Watch(ctx context.Context) <-chan *crdt.View
	SetNode(ctx context.Context, n crdt.Node) error
	SetClaims(ctx context.Context, claims []crdt.Claim) error
	Synced(since time.Duration) <-chan struct{}
}

// Content is the node's packs; *store.Store has these methods.
type Content interface {
	Pack(ctx context.Context, c cid.Cid) (*store.Root, error)
	Base(ctx context.Context, c cid.Cid) (*store.Base, error)
	Path(e store.Entry) (string, error)
	List(ctx context.Context) ([]store.Info, error)
}

// Keeper fetches and collects packs; *store.Store has these methods.
type Keeper interface {
	Fetch(ctx context.Context, c cid.Cid, o store.FetchOptions) error
	GC(ctx context.Context, keep func() []cid.Cid) (freed int64, err error)
}

// VMs is the machine's hypervisor; *fogvm.Manager has these methods.
type VMs interface {
	Sync(ctx context.Context, desired []fogvm.VM) error
	List() []fogvm.Status
	Changed() <-chan struct{}
	Hold()
}

// Liveness tells which nodes this node has confirmed dead; *Prober has these
// methods.
type Liveness interface {
	Dead() map[stmt.Key]time.Duration
	Changed() <-chan struct{}
	SetInterest(nodes []stmt.Key)
	// Sees says whether a node was heard of and is not confirmed dead.
	Sees(node stmt.Key) bool
}

// Leaser asks for the leases of fenced instances; *Leases has these methods.
type Leaser interface {
	Want(leases []plan.Lease)
	Status() map[string]plan.LeaseStatus
	Changed() <-chan struct{}
}

// noLeases grants nothing.
type noLeases struct{}

func (noLeases) Want([]plan.Lease)                   {}
func (noLeases) Status() map[string]plan.LeaseStatus { return nil }
func (noLeases) Changed() <-chan struct{}            { return nil }

// Config of a Reconciler. All fields but the last group are required.
type Config struct {
	Self     stmt.Key
	State    State
	Content  Content
	Keeper   Keeper
	VMs      VMs
	Liveness Liveness
	Dir      string // keeps what must outlive a restart: drain flag, VM definitions

	// Leases lets fenced instances run; without it they wait for ever.
	Leases Leaser

	// Loaded is the state that an earlier run left; nil: none.
	Loaded *crdt.View

	// Node is this node's register as it is published; Addrs, Holds and Draining
	// are filled in.
	Node  crdt.Node
	Addrs func() []string

	// Mesh is the public key of the node's own device on the mesh, and the IPv4
	// address that it claims there; nil leaves both out.
	Mesh func() (key stmt.Key, address netip.Addr)

	// GuestMesh has the guests be peers on it; nil: they are not.
	GuestMesh *GuestMesh

	// Vault has the secrets of instances; without one, what has secrets waits.
	Vault *Vault

	// Accepts says whose instances may run here; nil accepts everybody. Kick
	// makes a change of its answer take effect.
	Accepts func(owner stmt.Key) bool
	// AcceptLabel is the value of plan.AcceptLabel in the register; nil leaves it
	// out.
	AcceptLabel   func() string
	TakeoverDelay time.Duration        // 0: plan.DefaultTakeoverDelay
	Hysteresis    time.Duration        // 0: plan.DefaultHysteresis; below: nothing that runs moves
	Now           func() time.Duration // since boot; nil: boottime.Now
	// Woke, if not nil, is called when this machine has slept, before State is asked
	// to synchronise. It must not block.
	Woke   func()
	Logger *slog.Logger
}

// Fetching is how many packs are fetched at once; the store shares the line
// among them.
const Fetching = 2
