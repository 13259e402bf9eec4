package proc

import (
	"errors"
	"fmt"
	"time"

	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/record"
	"github.com/formthefog/formation/sim/scenario"
)

// The tiers that this package carries out, by their names in scenarios: without
// machines, and with.
const (
	Tier   = "proc"
	TierVM = "vm"
)

// MaxNodes bounds a swarm: each is a process of some 100 MB. MaxMachines bounds what
// instances of a plan may have at once: each is a QEMU of some 400 MB.
const (
	MaxNodes    = 16
	MaxMachines = 8
)

// Config is what a run needs. All but Base, Logs and Note is required.
type Config struct {
	Plan *scenario.Plan
	// Formd is the daemon's command: a path, and what comes before its own
	// arguments. Env is added to its environment.
	Formd []string
	Env   []string
	// Base is a CAR file with the image that machines run, which are real then; "":
	// the driver that starts none.
	Base string
	// Logs is a folder that is there, for what each daemon says; "": thrown away in
	// the end.
	Logs string
	// Note is told what happens, as it happens; nil: nobody is.
	Note func(format string, args ...any)
}

// Result is what came of a run.
type Result struct {
	Scenario     string        `json:"scenario"`
	Tier         string        `json:"tier"`
	Nodes        int           `json:"nodes"`
	Seed         uint64        `json:"seed"`
	Steps        int           `json:"steps"`        // of the schedule
	Acknowledged int           `json:"acknowledged"` // statements of owners
	Unanswered   int           `json:"unanswered"`   // what owners tried and no node acknowledged
	Real         time.Duration `json:"realNanoseconds"`
	Notes        []string      `json:"notes"`
	Cut          bool          `json:"cut,omitempty"` // it was stopped before its end, and judged by nothing that comes then
	Bad          []des.Broken  `json:"bad"`           // invariants that did not hold
	// Metrics are its figures, but for those that are Unknown, and Recording is what
	// happened.
	Metrics   record.Metrics    `json:"metrics"`
	Unknown   []string          `json:"unknown"`
	Recording *record.Recording `json:"-"`
}

// Replay is the command that carries out the same schedule, which need not come to
// the same.
func (r *Result) Replay() string {
	return fmt.Sprintf("form sim run %s --tier %s --nodes %d --seed %d", r.Scenario, r.Tier, r.Nodes, r.Seed)
}

// What is held beside what package des names.
const (
	// Settles and Agrees are those of package sim.
	Settles des.Invariant = "settles"
	Agrees  des.Invariant = "agrees"
	// DaemonsStay: no daemon ends that was not killed and whose disk has room.
	DaemonsStay des.Invariant = "daemons-stay"
	// LeavesNothing: a daemon that is told to end leaves no process, mount or socket,
	// and the run nothing at all.
	LeavesNothing des.Invariant = "leaves-nothing"
	// MachinesStay: a daemon that is killed takes none of its node's machines along.
	MachinesStay des.Invariant = "machines-stay"
	// ListedAsSigned: what a node's API lists is what the owners' statements say.
	ListedAsSigned des.Invariant = "listed-as-signed"
)

// Words of chance, beside those of a plan.
const (
	useVoters = 0x7076 + iota
	useWire
)

// ErrUnable: this machine, or this user, cannot run the tier.
var ErrUnable = errors.New("real daemons need Linux, root, ip and nft, and real machines QEMU as well")

// tier is the name of what is carried out.
func (c *Config) tier() string {
	if c.Base != "" {
		return TierVM
	}
	return Tier
}
