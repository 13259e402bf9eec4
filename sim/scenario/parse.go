package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Bounds of a file.
const (
	maxFile    = 64 << 10
	maxEntries = 256
	maxSteps   = 20_000
)

// The tiers, from the most deterministic to the most real.
var Tiers = []string{"des", "live", "proc", "vm"}

// lines finds on which line each entry of the schedule begins.
func (s *Scenario) lines(raw []byte) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return err
	}
	top := doc.Content[0].Content // keys and values in turn
	for i := 0; i+1 < len(top); i += 2 {
		if top[i].Value != "schedule" {
			continue
		}
		for k, n := range top[i+1].Content {
			if k < len(s.Schedule) {
				s.Schedule[k].line = n.Line
			}
		}
	}
	return nil
}

// Parse reads the scenario of a name.
func Parse(name string, raw []byte) (*Scenario, error) {
	if len(raw) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", name, len(raw), maxFile)
	}
	s := &Scenario{Name: name}
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	err := d.Decode(s)
	if err == nil {
		if more := d.Decode(&yaml.Node{}); !errors.Is(more, io.EOF) {
			err = errors.New("more than one document")
		}
	}
	if err == nil {
		err = s.lines(raw)
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, fmt.Errorf("scenario %s: %w", name, err)
	}
	return s, nil
}

func (s *Scenario) check() error {
	var bad []error
	say := func(ok bool, format string, args ...any) {
		if !ok {
			bad = append(bad, fmt.Errorf(format, args...))
		}
	}
	share := func(what string, x float64) { say(x >= 0 && x <= 1, "%s: %v, a share is from 0 to 1", what, x) }
	say(s.About != "" && !strings.Contains(s.About, "\n"), "about: one line that says what it proves")
	say(s.Nodes >= MinNodes && s.Nodes <= MaxNodes, "nodes: %d, allowed are %d to %d", s.Nodes, MinNodes, MaxNodes)
	share("network.loss", s.Network.Loss)
	share("network.duplicate", s.Network.Duplicate)
	share("network.damage", s.Network.Damage)
	share("liars", s.Liars)
	share("newcomers", s.Newcomers)
	say(s.Drift >= 0 && s.Drift <= 500_000, "drift: %d, at most 500000 millionths", s.Drift)
	say(s.Domains >= 0 && s.Domains <= MaxNodes, "domains: %d", s.Domains)
	for _, t := range s.Tiers {
		say(slices.Contains(Tiers, t), "tiers: %q is none of %v", t, Tiers)
	}
	w := s.Workload
	say(w.Replicas >= 0 && w.Replicas <= 64, "workload.replicas: %d, at most 64", w.Replicas)
	say(w.Voters >= 0 && w.Voters <= MinNodes, "workload.voters: %d, at most %d", w.Voters, MinNodes)
	say(w.Instances == Count{} || w.Replicas > 0, "workload.replicas: none, of %v instances", w.Instances)
	say(slices.Contains([]string{"", "keep", "stop-minority", "fence"}, w.Partition), "workload.partition: %q is none of keep, stop-minority, fence", w.Partition)
	say(w.After >= 0 && (w.After == 0 || w.Changes.Max > 0 && w.After < s.Until.Max), "workload.changes-after: %v, needs changes, and is before the end", w.After)
	e := s.Expect
	say(slices.Contains([]string{"", "lost", "none"}, e.Moves), "expect.moves: %q is none of lost, none", e.Moves)
	say(slices.Contains([]string{"", "some", "none"}, e.Takeovers), "expect.takeovers: %q is none of some, none", e.Takeovers)
	say(len(s.Schedule) <= maxEntries, "schedule: %d entries, at most %d", len(s.Schedule), maxEntries)
	for i := range s.Schedule {
		say(s.Schedule[i].Lifetimes == Span{} || s.Until != Span{}, "until: lifetimes have no end without it")
		if err := s.Schedule[i].check(); err != nil {
			bad = append(bad, fmt.Errorf("line %d: %w", s.Schedule[i].line, err))
		}
	}
	return errors.Join(bad...)
}

func (e *Entry) check() error {
	if e.At != (Span{}) && e.Then != (Span{}) {
		return errors.New("both at and then")
	}
	if e.Lifetimes != (Span{}) && (e.Lifetimes.Min < time.Second || e.Repeat != Count{} || e.Node != Each) {
		return errors.New("lifetimes: a week lasts a second or more, of node: each, without repeat")
	}
	if e.At.Min < 0 || e.Then.Min < 0 || e.Every.Min < 0 {
		return errors.New("a time before the beginning")
	}
	forms := 0
	for _, is := range []bool{e.Do != "", len(e.Choose) > 0, len(e.Each) > 0} {
		if is {
			forms++
		}
	}
	if forms != 1 {
		return errors.New("one of do, choose and each")
	}
	if len(e.Choose) == 0 && len(e.Each) == 0 {
		return e.Action.check()
	}
	if e.Action != (Action{}) {
		return errors.New("choose and each have their fields inside")
	}
	for _, c := range e.Choose {
		if err := c.check(); err != nil {
			return err
		}
		if c.Weight < 0 || c.Weight > 1000 {
			return fmt.Errorf("weight: %d, from 0 to 1000", c.Weight)
		}
	}
	for _, a := range e.Each {
		if err := a.check(); err != nil {
			return err
		}
	}
	return nil
}

// check holds an action to its verb.
func (a Action) check() error {
	v, ok := verb(a.Do)
	if !ok {
		return fmt.Errorf("nothing is called %q", a.Do)
	}
	given := map[string]bool{
		"node": a.Node != "", "for": a.For != Span{}, "by": a.By != Span{}, "share": a.Share != 0, "kind": a.Kind != "",
		"name": a.Name != "", "owner": a.Owner != 0, "replicas": a.Replicas != 0, "partition": a.Partition != "", "operators": a.Operators != "",
		"pack-mib": a.PackMiB != 0,
	}
	for _, f := range fields {
		switch {
		case given[f] && !slices.Contains(v.takes, f):
			return fmt.Errorf("%s takes no %s", a.Do, f)
		case !given[f] && slices.Contains(v.needs, f):
			return fmt.Errorf("%s needs %s", a.Do, f)
		}
	}
	switch {
	case a.Kind != "" && !slices.Contains(v.kinds, a.Kind):
		return fmt.Errorf("%s: kind %q is none of %v", a.Do, a.Kind, v.kinds)
	case !(a.Share >= 0 && a.Share <= 1):
		return fmt.Errorf("%s: share %v is not from 0 to 1", a.Do, a.Share)
	case a.For.Min < 0:
		return fmt.Errorf("%s: for %v", a.Do, a.For.Min)
	case a.Owner < 0 || a.Owner > 15:
		return fmt.Errorf("%s: owner %d, from 0 to 15", a.Do, a.Owner)
	case a.Replicas < 0 || a.Replicas > 64:
		return fmt.Errorf("%s: replicas %d, at most 64", a.Do, a.Replicas)
	case !slices.Contains([]string{"", "keep", "stop-minority", "fence"}, a.Partition):
		return fmt.Errorf("%s: partition %q is none of keep, stop-minority, fence", a.Do, a.Partition)
	case !slices.Contains([]string{"", "honest"}, a.Operators):
		return fmt.Errorf("%s: operators %q: honest, or none for every member", a.Do, a.Operators)
	case a.PackMiB < 0 || a.PackMiB > 16<<10:
		return fmt.Errorf("%s: pack-mib %d, at most %d", a.Do, a.PackMiB, 16<<10)
	}
	return nil
}

// fields of an action, in the order of complaints.
var fields = []string{"node", "for", "by", "share", "kind", "name", "owner", "replicas", "partition", "operators", "pack-mib"}

func verb(name string) (Verb, bool) {
	i := slices.IndexFunc(Verbs, func(v Verb) bool { return v.Name == name })
	if i < 0 {
		return Verb{}, false
	}
	return Verbs[i], true
}
