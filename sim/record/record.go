package record

import (
	"strings"
	"unicode/utf8"

	"github.com/formthefog/formation/sim/regions"
)

// Version is that of the format.
const Version = 1

// Micros is a virtual time or a span of it, in microseconds.
type Micros int64

// Header is the first line of a recording.
type Header struct {
	Version  int    `json:"formationRun"`
	Scenario string `json:"scenario"`
	About    string `json:"about,omitempty"`
	Tier     string `json:"tier"`
	Seed     string `json:"seed"` // in decimal: more than some readers' numbers hold
	Nodes    int    `json:"nodes"`
	Steps    int    `json:"steps"` // of the schedule
	Only     []int  `json:"only,omitempty"`
	Replay   string `json:"replay"` // the command that repeats the run
	// Regions are places with nodes, and At which of them each node is in; both are
	// empty when nodes are nowhere.
	Regions []Region `json:"regions,omitempty"`
	At      []int    `json:"at,omitempty"`
	// Classes of traffic, as Traffic has them.
	Classes []string `json:"classes"`
	// Unknown are the Unknowns that the tier does not know: no line tells of them, and
	// figures of them are 0.
	Unknown []string `json:"unknown,omitempty"`
}

// What a tier may not know.
const (
	OfEvents     = "events"     // each by itself: how many, and their hash
	OfStatements = "statements" // how they come to all
	OfSends      = "sends"      // what of them is sent, and how much of that is nothing new
	OfReplicas   = "replicas"   // which runs where: moves, and repairs
	OfFetches    = "fetches"    // what is fetched for replicas that move
	OfDeaths     = "deaths"     // who takes whom for dead, and takes over
)

// Unknowns are all there are.
var Unknowns = []string{OfEvents, OfStatements, OfSends, OfReplicas, OfFetches, OfDeaths}

// Region is a place.
type Region struct {
	Name string  `json:"name"`
	Lat  float64 `json:"lat"` // degrees
	Lon  float64 `json:"lon"`
}

// World is all of [regions], by number.
func World() []Region {
	out := make([]Region, regions.Count)
	for i := range out {
		g := regions.Of(i)
		out[i] = Region{Name: g.Name, Lat: g.Lat, Lon: g.Lon}
	}
	return out
}

// Line is one thing that happened: exactly one of its pointers is set.
type Line struct {
	At        Micros     `json:"us"`
	Node      *Node      `json:"node,omitempty"`
	Net       *Net       `json:"net,omitempty"`
	Step      *Step      `json:"step,omitempty"`
	Replica   *Replica   `json:"replica,omitempty"`
	Statement *Statement `json:"statement,omitempty"`
	Broken    *Broken    `json:"broken,omitempty"`
	Traffic   *Traffic   `json:"traffic,omitempty"`
	End       *End       `json:"end,omitempty"`
}

// States a node is in; several may hold at once.
const (
	Up       = "up"
	Down     = "down" // it is to come back
	Asleep   = "asleep"
	Stalled  = "stalled"
	Absent   = "absent" // it has not joined yet
	Gone     = "gone"   // for good
	Draining = "draining"
	Lying    = "lying"
	Clogged  = "clogged"
)

// States are all there are, in the order in which a Node has them.
var States = []string{Up, Down, Asleep, Stalled, Absent, Gone, Draining, Lying, Clogged}

// Node is in other states than before.
type Node struct {
	N  int      `json:"n"`
	Is []string `json:"is"`
}

// Net is who reaches whom from now on.
type Net struct {
	// Sides are the nodes on each side of a split but the first, which has the rest.
	Sides [][]int `json:"sides,omitempty"`
	// Cuts are the first pairs of nodes of which the second gets nothing from the
	// first, and CutsMore how many there are beside.
	Cuts     [][2]int `json:"cuts,omitempty"`
	CutsMore int      `json:"cutsMore,omitempty"`
	Loss     float64  `json:"loss"`
}

// Step of the schedule is done.
type Step struct {
	N    int    `json:"n"`
	Text string `json:"text"`
	// Node is to whom; -1: to nobody by number.
	Node int `json:"node"`
}

// Replica starts or stops to run on a node.
type Replica struct {
	Instance string `json:"instance"` // by ID
	Name     string `json:"name,omitempty"`
	Slot     int    `json:"slot"`
	Node     int    `json:"node"`
	Runs     bool   `json:"runs"`
}

// Statement has come to all nodes that were to have it, or will not.
type Statement struct {
	Kind string `json:"kind"`
	By   int    `json:"by"` // the node that published it
	Made Micros `json:"made"`
	// Half, Most and All are how long it took until half, 99 of a hundred and all nodes
	// had it; 0: they have not.
	Half Micros `json:"half,omitempty"`
	Most Micros `json:"most,omitempty"`
	All  Micros `json:"all,omitempty"`
}

// Broken is an invariant that did not hold.
type Broken struct {
	Of   string `json:"invariant"`
	What string `json:"what"`
}

// Traffic is what happened since the line of traffic before.
type Traffic struct {
	Messages []uint64 `json:"messages"` // of each class
	Bytes    []uint64 `json:"bytes"`
	Done     int      `json:"done"`    // statements of which there is nothing more to tell
	Slowest  Micros   `json:"slowest"` // the longest that one of them took to all
	Open     int      `json:"open"`    // statements on their way
}

// End is the last line.
type End struct {
	// Hash is that of all events; "" where those are unknown.
	Hash   string `json:"hash"`
	Events uint64 `json:"events"`
	// Cut says that the run was stopped before its end.
	Cut bool `json:"cut,omitempty"`
	// Left are how many lines of a kind are left out, and from when on.
	Left    map[string]Left `json:"left,omitempty"`
	Metrics Metrics         `json:"metrics"`
}

// Left is what a recording lacks.
type Left struct {
	Lines int    `json:"lines"`
	Since Micros `json:"since"`
}

// Quantiles of spans of time.
type Quantiles struct {
	Count int    `json:"count"`
	P50   Micros `json:"p50"`
	P99   Micros `json:"p99"`
	Most  Micros `json:"most"`
}

// Metrics are figures of a run.
type Metrics struct {
	// Convergence is the time from a statement's publication until all nodes have it
	// that were up then and still are. Overtaken are those that a later one replaced
	// before, and Open those on their way at the end: neither is in Convergence.
	Convergence Quantiles `json:"convergence"`
	Overtaken   int       `json:"overtaken"`
	Open        int       `json:"open"`
	// Traffic is what a node sends in a second, of each class.
	Traffic []Rate `json:"traffic"`
	// Sends is how many messages of statements a node sends for each statement, and
	// Duplicates how many of them say nothing new for each that does.
	Sends      float64 `json:"sends"`
	Duplicates float64 `json:"duplicates"`
	// Repair is the time from a machine's end until all it ran runs again, and
	// Unrepaired how many times that was not before the end.
	Repair     Quantiles `json:"repair"`
	Unrepaired int       `json:"unrepaired"`
	// Moves are replicas that run on another node than before, and MovedBytes what was
	// fetched for them.
	Moves      int    `json:"moves"`
	MovedBytes uint64 `json:"movedBytes"`
	// Takeovers, those of them from nodes that were up, and nodes taken for dead that
	// were up and reachable.
	Takeovers      int `json:"takeovers"`
	WrongTakeovers int `json:"wrongTakeovers"`
	FalseDeaths    int `json:"falseDeaths"`
}

// Rate is what a node sends in a second.
type Rate struct {
	Class    string  `json:"class"`
	Messages float64 `json:"messages"`
	Bytes    float64 `json:"bytes"`
}

// Recording is a whole one.
type Recording struct {
	Header
	Lines []Line
}

// clip bounds a text of others to n bytes, of whole characters.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= n {
		return s
	}
	for n -= len("…"); !utf8.RuneStart(s[n]); n-- {
	}
	return s[:n] + "…"
}
