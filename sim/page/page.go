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

// figures are the metrics in words.
func figures(r *record.Recording, end *record.End) []figure {
	m := end.Metrics
	span := func(q record.Quantiles) string {
		if q.Count == 0 {
			return "–"
		}
		d := func(t record.Micros) time.Duration {
			return (time.Duration(t) * time.Microsecond).Round(time.Millisecond)
		}
		return fmt.Sprintf("p50 %v · p99 %v · at most %v (%d)", d(q.P50), d(q.P99), d(q.Most), q.Count)
	}
	out := []figure{
		{"nodes, steps, events", fmt.Sprintf("%d, %d, %d", r.Nodes, r.Steps, end.Events)},
		{"tier, hash", r.Tier + ", " + end.Hash},
		{"statement with all nodes", span(m.Convergence)},
		{"overtaken, on their way", fmt.Sprintf("%d, %d", m.Overtaken, m.Open)},
		{"messages a statement and node", fmt.Sprintf("%.2f, nothing new in %.2f for each that is", m.Sends, m.Duplicates)},
		{"repair", span(m.Repair) + fmt.Sprintf("; %d not", m.Unrepaired)},
		{"replicas moved", fmt.Sprintf("%d, %.1f MiB fetched", m.Moves, float64(m.MovedBytes)/(1<<20))},
		{"takeovers", fmt.Sprintf("%d, %d from who was up", m.Takeovers, m.WrongTakeovers)},
		{"taken for dead while up", fmt.Sprint(m.FalseDeaths)},
	}
	for _, t := range m.Traffic {
		out = append(out, figure{t.Class, fmt.Sprintf("%.2f messages, %.0f bytes a node and second", t.Messages, t.Bytes)})
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
			at := (time.Duration(l.Since) * time.Microsecond).Round(time.Millisecond)
			out = append(out, fmt.Sprintf("The recording is full: %d lines of kind %s are left out, from %v on.", l.Lines, kind, at))
		}
	}
	return out
}
