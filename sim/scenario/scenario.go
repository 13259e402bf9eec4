package scenario

import (
	"fmt"
	"strings"
	"time"
)

// MinNodes and MaxNodes bound a swarm that is simulated.
const (
	MinNodes = 6
	MaxNodes = 10_000
)

// Scenario is something that happens to a swarm. It is not changed once parsed.
type Scenario struct {
	Name  string   `yaml:"-"`
	About string   `yaml:"about"` // one line: what it proves
	Nodes int      `yaml:"nodes"` // as many unless told otherwise
	Tiers []string `yaml:"tiers"` // that can run it; none: des alone
	// Network is how messages fare when no step says otherwise.
	Network Network `yaml:"network"`
	// Drift is by how many millionths at most clocks are fast or slow.
	Drift int64 `yaml:"drift"`
	// Domains is over how many failure domains nodes are spread; 0: each is its own.
	Domains int `yaml:"domains"`
	// Liars is which share of the nodes lies once a step says so.
	Liars float64 `yaml:"liars"`
	// Newcomers is which share of the nodes is not there until a step has it join.
	Newcomers float64  `yaml:"newcomers"`
	Workload  Workload `yaml:"workload"`
	Schedule  []Entry  `yaml:"schedule"`
	// Until is how long the schedule takes; 0: until its last step.
	Until Span `yaml:"until"`
	// Calm says how it ends: true: all faults end, and who is down starts.
	Calm   bool   `yaml:"calm"`
	Expect Expect `yaml:"expect"`
	// Sometimes are rare things that a run must have seen.
	Sometimes []string `yaml:"sometimes"`
}

// Network is how messages fare. Probabilities are per message.
type Network struct {
	Regions   bool    `yaml:"regions"` // 19 regions of the world; else one-way times of 5 to 60 ms
	Loss      float64 `yaml:"loss"`
	Duplicate float64 `yaml:"duplicate"`
	Damage    float64 `yaml:"damage"`
}

// Workload is what runs from the beginning, and what owners go on doing.
type Workload struct {
	Instances Count  `yaml:"instances"`
	Replicas  int    `yaml:"replicas"`
	Partition string `yaml:"partition"` // the contract of all
	Voters    int    `yaml:"voters"`    // of each that needs them
	VCPU      int    `yaml:"vcpu"`
	MemoryMiB uint64 `yaml:"memory-mib"`
	// Changes is how long lies between two changes by owners, on average; 0: none.
	Changes Span `yaml:"changes"`
	// After is when the changes begin: a swarm that has just started has no meshes yet.
	After time.Duration `yaml:"changes-after"`
}

// Expect bounds what a run may take. Zero: not looked at.
type Expect struct {
	// Settle is how long after the last step all nodes agree and every replica runs
	// once.
	Settle time.Duration `yaml:"settle"`
	// Agree is how long after the last step all nodes agree.
	Agree time.Duration `yaml:"agree"`
	// Deaths is how long until those that may take over confirm a death.
	Deaths time.Duration `yaml:"deaths"`
	// Moves: "lost": only what a node that was lost ran runs elsewhere afterwards.
	// "none": nothing does.
	Moves string `yaml:"moves"`
	// Takeovers: "none" or "some".
	Takeovers string `yaml:"takeovers"`
	// Budget: no node takes over more within a minute than it may.
	Budget bool `yaml:"takeover-budget"`
	// Alive: no node that was up and reachable was taken for dead.
	Alive bool `yaml:"no-false-deaths"`
	// Sides is how long after a split each side that its contract lets serve does,
	// and Stops how long until the other does not.
	Sides time.Duration `yaml:"side-serves"`
	Stops time.Duration `yaml:"side-stops"`
	// Always: what ran when the first fault came runs somewhere all the while.
	Always bool `yaml:"served-always"`
	// Slept: who has just slept takes nothing from those who served meanwhile.
	Slept bool `yaml:"sleepers-take-nothing"`
	// Delivery is the 99th percentile of the time until all nodes have a statement,
	// and Sends how many messages with one a node may send for each.
	Delivery time.Duration `yaml:"delivery-p99"`
	Sends    float64       `yaml:"sends"`
}

// Entry is one line of a schedule: a step, or one of several, once or again and
// again.
type Entry struct {
	Action `yaml:",inline"`
	// At is when, from the beginning; 0: at the time of the entry before.
	At Span `yaml:"at"`
	// Then is how long after the entry before has done its last.
	Then Span `yaml:"then"`
	// Repeat is how often, and Every how long lies between.
	Repeat Count `yaml:"repeat"`
	Every  Span  `yaml:"every"`
	// Lifetimes has it happen to each node again and again, whenever the node has been
	// up for a time drawn from how long machines of a real fleet are, in which a week
	// lasts so long (churn.go), until the scenario's Until.
	Lifetimes Span `yaml:"lifetimes"`
	// Choose are several of which one is drawn each time.
	Choose []Choice `yaml:"choose"`
	// Each are several that are done each time, one after the other, at once.
	Each []Action `yaml:"each"`

	line int
}

// Choice is an action with how likely it is beside the others; 0: as one.
type Choice struct {
	Action `yaml:",inline"`
	Weight int `yaml:"weight"`
}

// Action is what a step does. Which fields count depends on Do (see Verbs).
type Action struct {
	Do    string  `yaml:"do" json:"do"`
	Node  Pick    `yaml:"node" json:"node,omitzero"`    // to whom
	For   Span    `yaml:"for" json:"-"`                 // how long it lasts
	By    Span    `yaml:"by" json:"-"`                  // how much
	Share float64 `yaml:"share" json:"share,omitempty"` // of what there is
	Kind  string  `yaml:"kind" json:"kind,omitempty"`
	// Of what an owner ships.
	Name      string `yaml:"name" json:"name,omitempty"`
	Owner     int    `yaml:"owner" json:"owner,omitempty"`
	Replicas  int    `yaml:"replicas" json:"replicas,omitempty"`
	Partition string `yaml:"partition" json:"partition,omitempty"`
	Operators string `yaml:"operators" json:"operators,omitempty"` // "honest": who does not lie; else: every member
	PackMiB   int    `yaml:"pack-mib" json:"packMiB,omitempty"`    // 0: drawn
}

// Step is one action at its time.
type Step struct {
	N  int           `json:"n"` // its place in the schedule
	At time.Duration `json:"at"`
	Action
	For time.Duration `json:"for,omitempty"`
	By  time.Duration `json:"by,omitempty"`
	// Draw is what is left to chance.
	Draw uint64 `json:"draw"`
}

// String is the step on one line, for people: times are to the millisecond.
func (s Step) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d at %v: %s", s.N, s.At.Round(time.Millisecond), s.Do)
	add := func(name string, v any, given bool) {
		if given {
			fmt.Fprintf(&b, " %s=%v", name, v)
		}
	}
	add("node", s.Node, s.Node != "")
	add("kind", s.Kind, s.Kind != "")
	add("for", s.For.Round(time.Millisecond), s.For != 0)
	add("by", s.By.Round(time.Millisecond), s.By != 0)
	add("share", s.Share, s.Share != 0)
	add("name", s.Name, s.Name != "")
	add("owner", s.Owner, s.Owner != 0)
	add("replicas", s.Replicas, s.Replicas != 0)
	add("partition", s.Partition, s.Partition != "")
	add("operators", s.Operators, s.Operators != "")
	add("pack-mib", s.PackMiB, s.PackMiB != 0)
	return b.String()
}
