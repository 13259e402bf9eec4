// Package page draws a recording as one HTML file, in which one can go to any moment
// of a run: the nodes, what runs on them, splits, steps, and what was broken when.
//
// Guarantees: the file needs no other file and no network, and says so to the browser;
// what a recording says is text in it, whatever it says. Non-guarantees: it shows what
// the recording has, and says what that lacks.
package page

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/sim/record"
)

//go:embed embed/page.html
var html string

//go:embed embed/page.css
var style string

//go:embed embed/page.js
var script string

var tmpl = template.Must(template.New("page").Parse(html))

// figure is one line of a table.
type figure struct{ Name, Value string }

// Write writes the page of a recording.
func Write(w io.Writer, r *record.Recording) error {
	d, failed := pack(r)
	data, err := json.Marshal(d) // which writes < as \u003c: a script's end in a text ends nothing
	if err != nil {
		return err
	}
	end := r.Lines[len(r.Lines)-1].End
	return tmpl.Execute(w, map[string]any{
		"Scenario": r.Scenario, "Seed": r.Seed, "About": r.About, "Replay": r.Replay, "Failed": failed, "Figures": figures(r, end), "Left": left(end),
		"Tier": r.Tier, "Unknown": unknown(r), "Unseen": unseen(r),
		"Style": template.CSS(style), "Script": template.JS(script), "Data": template.JS(data),
	})
}

// data is a recording as the page's script takes it: lists of numbers.
type data struct {
	Nodes    int             `json:"nodes"`
	End      record.Micros   `json:"end"`
	States   []string        `json:"states"`
	Regions  []record.Region `json:"regions,omitempty"`
	At       []int           `json:"at,omitempty"`
	Classes  []string        `json:"classes"`
	Replicas []string        `json:"replicas"` // names
	// When, which node, which States as bits; when, which replica, which node, whether
	// it runs.
	NodeEvents    []int64   `json:"nodeEvents"`
	ReplicaEvents []int64   `json:"replicaEvents"`
	Nets          []net     `json:"nets"`
	Steps         []step    `json:"steps"`
	Broken        []broken  `json:"broken"`
	Traffic       []traffic `json:"traffic"`
}

type net struct {
	US    record.Micros `json:"us"`
	Sides [][]int       `json:"sides,omitempty"`
	Cuts  [][2]int      `json:"cuts,omitempty"`
	Loss  float64       `json:"loss"`
}

type step struct {
	US   record.Micros `json:"us"`
	Text string        `json:"text"`
	Node int           `json:"node"`
}

type broken struct {
	US   record.Micros `json:"us"`
	Of   string        `json:"of"`
	What string        `json:"what"`
}

type traffic struct {
	US       record.Micros `json:"us"`
	Messages []uint64      `json:"messages"`
	Slowest  record.Micros `json:"slowest"`
	Open     int           `json:"open"`
}

// pack makes lists of lines, and counts what was broken.
func pack(r *record.Recording) (*data, int) {
	d := &data{
		Nodes: r.Nodes, States: record.States, Regions: r.Regions, At: r.At, Classes: r.Classes, Replicas: []string{}, NodeEvents: []int64{},
		ReplicaEvents: []int64{}, Nets: []net{}, Steps: []step{}, Broken: []broken{}, Traffic: []traffic{},
	}
	if d.Classes == nil {
		d.Classes = []string{}
	}
	number := map[string]int{}
	for _, l := range r.Lines {
		d.End = l.At
		switch {
		case l.Node != nil:
			d.NodeEvents = append(d.NodeEvents, int64(l.At), int64(l.Node.N), bits(l.Node.Is))
		case l.Replica != nil:
			id := fmt.Sprint(l.Replica.Instance, "/", l.Replica.Slot)
			k, known := number[id]
			if !known {
				k = len(d.Replicas)
				number[id] = k
				d.Replicas = append(d.Replicas, name(l.Replica))
			}
			runs := int64(0)
			if l.Replica.Runs {
				runs = 1
			}
			d.ReplicaEvents = append(d.ReplicaEvents, int64(l.At), int64(k), int64(l.Replica.Node), runs)
		case l.Net != nil:
			d.Nets = append(d.Nets, net{l.At, l.Net.Sides, l.Net.Cuts, l.Net.Loss})
		case l.Step != nil:
			d.Steps = append(d.Steps, step{l.At, l.Step.Text, l.Step.Node})
		case l.Broken != nil:
			d.Broken = append(d.Broken, broken{l.At, l.Broken.Of, l.Broken.What})
		case l.Traffic != nil:
			d.Traffic = append(d.Traffic, traffic{l.At, l.Traffic.Messages, l.Traffic.Slowest, l.Traffic.Open})
		}
	}
	return d, len(d.Broken)
}

func name(r *record.Replica) string {
	if r.Name == "" {
		return fmt.Sprintf("%.8s/%d", r.Instance, r.Slot)
	}
	return fmt.Sprintf("%s/%d", r.Name, r.Slot)
}

// bits are states as a set, by their place in record.States.
func bits(is []string) (b int64) {
	for _, s := range is {
		b |= 1 << max(0, slices.Index(record.States, s))
	}
	return b
}

// unknown are the Unknowns of a recording, for a template to ask.
func unknown(r *record.Recording) map[string]bool {
	out := map[string]bool{}
	for _, of := range r.Unknown {
		out[of] = true
	}
	return out
}

// words of what a tier may not know.
var words = map[string]string{
	record.OfEvents: "events one by one", record.OfStatements: "how statements come to all", record.OfSends: "what is sent for each statement",
	record.OfReplicas: "what runs where", record.OfFetches: "what is fetched for replicas that move", record.OfDeaths: "who takes whom for dead",
}

// unseen is what the tier does not know, in words.
func unseen(r *record.Recording) string {
	out := make([]string, len(r.Unknown))
	for i, of := range r.Unknown {
		out[i] = words[of]
	}
	return strings.Join(out, ", ")
}

// figures are the metrics in words, but for those that the tier does not know.
func figures(r *record.Recording, end *record.End) (out []figure) {
	m, lacks := end.Metrics, unknown(r)
	span := func(q record.Quantiles) string {
		if q.Count == 0 {
			return "–"
		}
		d := func(t record.Micros) time.Duration { return t.Duration().Round(time.Millisecond) }
		return fmt.Sprintf("p50 %v · p99 %v · at most %v (%d)", d(q.P50), d(q.P99), d(q.Most), q.Count)
	}
	say := func(of, name, format string, args ...any) {
		if !lacks[of] {
			out = append(out, figure{name, fmt.Sprintf(format, args...)})
		}
	}
	say("", "tier, nodes, steps", "%s, %d, %d", r.Tier, r.Nodes, r.Steps)
	say(record.OfEvents, "events, hash", "%d, %s", end.Events, end.Hash)
	say(record.OfStatements, "statement with all nodes", "%s", span(m.Convergence))
	say(record.OfStatements, "overtaken, on their way", "%d, %d", m.Overtaken, m.Open)
	say(record.OfSends, "messages a statement and node", "%.2f, nothing new in %.2f for each that is", m.Sends, m.Duplicates)
	say(record.OfReplicas, "repair", "%s; %d not", span(m.Repair), m.Unrepaired)
	say(record.OfReplicas, "replicas moved", "%d", m.Moves)
	say(record.OfFetches, "fetched for them", "%.1f MiB", float64(m.MovedBytes)/(1<<20))
	say(record.OfDeaths, "takeovers", "%d, %d from who was up", m.Takeovers, m.WrongTakeovers)
	say(record.OfDeaths, "taken for dead while up", "%d", m.FalseDeaths)
	for _, t := range m.Traffic {
		say("", t.Class, "%.2f messages, %.0f bytes a node and second", t.Messages, t.Bytes)
	}
	return out
}

// left says what the recording lacks.
func left(end *record.End) (out []string) {
	if end.Cut {
		out = append(out, "The run was cut short: it goes on after this in no recording.")
	}
	for _, kind := range []string{"node", "net", "step", "replica", "statement", "broken", "traffic"} {
		if l, ok := end.Left[kind]; ok {
			at := l.Since.Duration().Round(time.Millisecond)
			out = append(out, fmt.Sprintf("The recording is full: %d lines of kind %s are left out, from %v on.", l.Lines, kind, at))
		}
	}
	return out
}
