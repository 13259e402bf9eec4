package scenario

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Span is a time, or a range of which one is drawn: "20s", "5s..20s".
type Span struct{ Min, Max time.Duration }

// longest a time in a scenario may be: half a year, for churn.
const longest = 183 * 24 * time.Hour

// UnmarshalYAML reads what Span says.
func (s *Span) UnmarshalYAML(n *yaml.Node) error {
	lo, hi, isRange := strings.Cut(n.Value, "..")
	if !isRange {
		hi = lo
	}
	var err error
	if s.Min, err = time.ParseDuration(lo); err == nil {
		s.Max, err = time.ParseDuration(hi)
	}
	if err != nil || s.Min > s.Max || max(s.Min.Abs(), s.Max.Abs()) > longest {
		return wrong(n, "%q is no time and no range of times: 20s, 5s..20s, at most %v", n.Value, longest)
	}
	return nil
}

// Count is a number, or so many for each node: "12", "1.5/node".
type Count struct {
	N       int
	PerNode float64
}

// most a Count may be, and for each node.
const (
	most        = 100_000
	mostPerNode = 100
)

// Of is the count in a swarm of so many nodes.
func (c Count) Of(nodes int) int { return c.N + int(math.Round(c.PerNode*float64(nodes))) }

// UnmarshalYAML reads what Count says.
func (c *Count) UnmarshalYAML(n *yaml.Node) error {
	var err error
	if per, ok := strings.CutSuffix(n.Value, "/node"); ok {
		c.PerNode, err = strconv.ParseFloat(per, 64)
	} else {
		c.N, err = strconv.Atoi(n.Value)
	}
	if err != nil || c.N < 0 || c.N > most || !(c.PerNode >= 0 && c.PerNode <= mostPerNode) {
		return wrong(n, "%q is no count: 12 (at most %d), or 1.5/node (at most %d)", n.Value, most, mostPerNode)
	}
	return nil
}

// Pick says to which node a step happens: a number, or one of Picks, of which one
// is drawn when the step happens.
type Pick string

// The picks.
const (
	Any     Pick = "any"     // of all
	Up      Pick = "up"      // whose daemon runs
	Down    Pick = "down"    // whose daemon does not
	Running Pick = "running" // that run something, three times in four; else of all
	Serving Pick = "serving" // that run something, and do not lie
	Clogged Pick = "clogged"
	Drained Pick = "drained"
	Honest  Pick = "honest" // that are up and do not lie
	Each    Pick = "each"   // one after the other, in a drawn order
)

var picks = []Pick{Any, Up, Down, Running, Serving, Clogged, Drained, Honest, Each}

// Number is the node that p names by its number.
func (p Pick) Number() (int, bool) {
	n, err := strconv.Atoi(string(p))
	return n, err == nil
}

// UnmarshalYAML reads a number or a name of Picks.
func (p *Pick) UnmarshalYAML(n *yaml.Node) error {
	*p = Pick(n.Value)
	if i, ok := p.Number(); ok && i >= 0 && i < MinNodes || slices.Contains(picks, *p) {
		return nil
	}
	return wrong(n, "%q is no node: 0 to %d, or one of %v", n.Value, MinNodes-1, picks)
}

// wrong is an error at a place of the file.
func wrong(n *yaml.Node, format string, args ...any) error {
	return fmt.Errorf("line %d: %s", n.Line, fmt.Sprintf(format, args...))
}
