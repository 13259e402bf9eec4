// Package place decides which nodes should run an instance: weighted rendezvous
// hashing over the nodes that may. It is pure: no clock, no randomness, no
// floating point; every machine computes the same from the same input, whatever
// order the input has.
//
// Guarantees:
//
//   - The nodes wanted for R replicas are the first R of one order per instance
//     ([Order]). A node that leaves, joins or changes weight moves only the
//     replicas that it loses or wins.
//   - Within an order, the chance to come first is proportional to weight, which
//     follows total capacity: what runs already does not reshuffle anything.
//   - No node is preferred for two slots of one instance, and no failure domain
//     ([DomainOf]) for more than any other that has a node to give. Where nodes
//     share domains, the chance of a domain to come first is the sum of theirs,
//     and a small domain gets more than its share of the second replicas.
//
// Not guaranteed: that a slot keeps its number. No function of the candidates
// alone can both keep every survivor's slot and fill the gap; so [Rank] takes
// which nodes hold which slots, and a holder keeps its own.
package place

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Candidate is a node as placement sees it.
type Candidate struct {
	Key      stmt.Key
	Operator stmt.Key // zero: none known
	Total    crdt.Resources
	Labels   map[string]string
	Region   string
	GPU      string // "model:n"
	Draining bool
	Alive    bool
}

// Eligible says whether c may run spec at all, and if not, why, as one line for
// people. It looks at constraints and at total capacity, never at free capacity:
// admission is the planner's part, and must not change a ranking.
func Eligible(spec crdt.Spec, c Candidate) (ok bool, reason string) {
	switch {
	case !c.Alive:
		return false, "not alive"
	case c.Draining:
		return false, "draining"
	case len(spec.Critical) > 0:
		return false, "the spec needs a newer version: " + strings.Join(spec.Critical, ", ")
	case !operates(spec, c):
		return false, "not on the operators list"
	case spec.Region != "" && spec.Region != c.Region:
		return false, fmt.Sprintf("region %q, wanted %q", c.Region, spec.Region)
	case !hasGPU(spec.GPU, c.GPU):
		return false, fmt.Sprintf("GPU %q, wanted %q", c.GPU, spec.GPU)
	}
	for _, k := range sortedKeys(spec.Labels) {
		if have, ok := c.Labels[k]; !ok || have != spec.Labels[k] {
			return false, fmt.Sprintf("label %s=%s missing", k, spec.Labels[k])
		}
	}
	if ok, what := fits(Need(spec), c.Total); !ok {
		return false, "too small: " + what
	}
	return true, ""
}

func operates(spec crdt.Spec, c Candidate) bool {
	return len(spec.Operators) == 0 || slices.Contains(spec.Operators, c.Key) ||
		(!c.Operator.IsZero() && slices.Contains(spec.Operators, c.Operator))
}

// hasGPU compares "model[:n]" with "model:n"; a missing count is 1.
func hasGPU(want, have string) bool {
	if want == "" {
		return true
	}
	wm, wn := splitGPU(want)
	hm, hn := splitGPU(have)
	return wm == hm && wn <= hn
}

func splitGPU(s string) (model string, n int) {
	model, count, ok := strings.Cut(s, ":")
	if !ok {
		return model, 1
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 {
		return model, 1
	}
	return model, n
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Order returns the keys of the eligible candidates, best first. The first
// spec.Replicas of them are the nodes wanted for the instance: those that draw
// best, but no second one of a failure domain before every domain has one.
func Order(spec crdt.Spec, cands []Candidate) []stmt.Key { return spread(draws(spec, cands), nil) }

// draws lists the eligible candidates as they drew, best first.
func draws(spec crdt.Spec, cands []Candidate) []drawn {
	list := make([]drawn, 0, len(cands))
	for _, c := range cands {
		if ok, _ := Eligible(spec, c); ok {
			list = append(list, drawn{c.Key, DomainOf(c), draw(spec.ID, c.Key), Weight(c.Total)})
		}
	}
	slices.SortFunc(list, byDraw)
	return list
}

// Rank returns the eligible candidates for one slot, in the order in which they
// should take it: first the node preferred for it, then the spare nodes, those
// of domains that serve the fewest slots first, then those preferred for other
// slots (which take it only if the rest is gone; two replicas never share a
// node). held maps nodes to the slot of this instance they hold a claim on; it
// may be nil. A slot whose holder is eligible prefers that holder; the other
// slots are given, lowest first, to the best of the rest.
func Rank(spec crdt.Spec, slot int, cands []Candidate, held map[stmt.Key]int) []stmt.Key {
	return rank(draws(spec, cands), max(spec.Replicas, slot+1), slot, held)
}

// rank is Rank of nodes as they drew.
func rank(list []drawn, slots, slot int, held map[stmt.Key]int) []stmt.Key {
	preferred := make([]stmt.Key, slots)
	used := map[Domain]int{}
	// A second claimant of a slot is no spare: it is surplus, and drains.
	var rest []drawn
	var surplus []stmt.Key
	for _, d := range list {
		s, ok := held[d.key]
		switch {
		case !ok:
			rest = append(rest, d)
		case s >= 0 && s < slots && preferred[s].IsZero():
			preferred[s] = d.key
			used[d.domain]++
		default:
			surplus = append(surplus, d.key)
		}
	}
	spare := spread(rest, used)
	for s := range preferred {
		if preferred[s].IsZero() && len(spare) > 0 {
			preferred[s], spare = spare[0], spare[1:]
		}
	}
	out := make([]stmt.Key, 0, len(list))
	if !preferred[slot].IsZero() {
		out = append(out, preferred[slot])
	}
	out = append(append(out, spare...), surplus...)
	for s, k := range preferred {
		if s != slot && !k.IsZero() {
			out = append(out, k)
		}
	}
	return out
}

// Units of Weight.
const (
	weightUnit   = 64 << 20 // bytes of memory
	memoryPerCPU = 2 << 30  // memory beyond this per CPU adds no weight
	maxWeight    = 1 << 16  // 4 TiB: what a node may claim to be
)

// Weight is a node's share of the replicas: its memory in units of 64 MiB, of
// which at most 2 GiB a CPU count; 1 to 65536, so that a node which lies about
// its size draws little more than the largest honest one.
func Weight(total crdt.Resources) uint64 {
	cpus := uint64(min(max(total.CPUs, 1), maxWeight))
	return min(max(min(total.Memory, cpus*memoryPerCPU)/weightUnit, 1), maxWeight)
}

// draw returns -log2 of a uniform number in (0,1) that hashes instance and node,
// in units of 2^-40. Divided by a weight it is exponentially distributed with
// that weight as its rate, so the least of several comes from each node with a
// probability proportional to its weight.
func draw(instance string, node stmt.Key) uint64 { return negLog2(drawBits(instance, node)) }

// drawBits is the uniform number of draw, in units of 2^-64; never 0.
func drawBits(instance string, node stmt.Key) uint64 {
	var buf [96]byte // does not escape; an instance ID has 32 bytes
	b := append(append(append(buf[:0], "formation/place/1\x00"...), instance...), node[:]...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:8]) | 1
}

const logFraction = 40 // bits after the point

// negLog2 returns -log2(x/2^64) with 40 bits after the point, for x > 0, by
// squaring: integers only, so that every machine gets the same.
func negLog2(x uint64) uint64 {
	lead := bits.LeadingZeros64(x)
	m := x << lead // in [2^63, 2^64): a number in [1,2) with 63 bits after the point
	var frac uint64
	for range logFraction {
		hi, lo := bits.Mul64(m, m) // in [1,4) with 62 bits after the point of hi
		frac <<= 1
		if hi>>63 == 1 {
			frac |= 1
			m = hi
		} else {
			m = hi<<1 | lo>>63
		}
	}
	// x/2^64 = m/2^63 * 2^(-1-lead)
	return uint64(lead+1)<<logFraction - frac
}

// What a replica gets where its spec says nothing, and the least it may ask for
// (CONTRACT, Formfile). The most is what package crdt lets through.
const (
	DefaultVCPU   = 1
	DefaultMemory = 512 << 20
	DefaultDisk   = 5 << 30

	MinMemory = 128 << 20
	MinDisk   = 1 << 30
)

// Need is what one replica of spec takes, and is given: never nothing, whatever
// the spec says, so that no sum of needs is wrong.
func Need(spec crdt.Spec) crdt.Resources {
	r := crdt.Resources{CPUs: spec.VCPU, Memory: spec.MemoryBytes, Disk: spec.DiskBytes}
	if r.CPUs == 0 {
		r.CPUs = DefaultVCPU
	}
	if r.Memory == 0 {
		r.Memory = DefaultMemory
	}
	if r.Disk == 0 {
		r.Disk = DefaultDisk
	}
	return crdt.Resources{
		CPUs: min(max(r.CPUs, 1), crdt.MaxVCPU), Memory: min(r.Memory, crdt.MaxMemory), Disk: min(r.Disk, crdt.MaxDisk),
	}
}

// OutOfBounds says, as one line for people, what of a spec's sizes no machine
// gives; empty when all is well.
func OutOfBounds(spec crdt.Spec) string {
	switch {
	case spec.VCPU < 0 || spec.VCPU > crdt.MaxVCPU:
		return fmt.Sprintf("%d vCPUs, allowed are 1 to %d", spec.VCPU, crdt.MaxVCPU)
	case spec.MemoryBytes != 0 && (spec.MemoryBytes < MinMemory || spec.MemoryBytes > crdt.MaxMemory):
		return fmt.Sprintf("%d MiB of memory, allowed are %d to %d", spec.MemoryBytes>>20, MinMemory>>20, uint64(crdt.MaxMemory>>20))
	case spec.DiskBytes != 0 && (spec.DiskBytes < MinDisk || spec.DiskBytes > crdt.MaxDisk):
		return fmt.Sprintf("%d MiB of disk, allowed are %d GiB to %d GiB", spec.DiskBytes>>20, MinDisk>>30, crdt.MaxDisk>>30)
	}
	return ""
}

func fits(need, have crdt.Resources) (bool, string) {
	switch {
	case need.CPUs > have.CPUs:
		return false, fmt.Sprintf("%d CPUs, needs %d", have.CPUs, need.CPUs)
	case need.Memory > have.Memory:
		return false, fmt.Sprintf("%d MiB of memory, needs %d", have.Memory>>20, need.Memory>>20)
	case need.Disk > have.Disk:
		return false, fmt.Sprintf("%d MiB of disk, needs %d", have.Disk>>20, need.Disk>>20)
	}
	return true, ""
}

// atLeast is no more than negLog2, and no less than that minus a tenth of one: a
// chord of the logarithm, for a small part of the work.
func atLeast(x uint64) uint64 {
	const slack = (1 << logFraction) / 11 // log2(m)-(m-1) is less for m in [1,2)
	lead := bits.LeadingZeros64(x)
	m := x << lead << 1 >> (64 - logFraction) // what is after the point of a number in [1,2)
	whole := uint64(lead+1) << logFraction
	return whole - min(whole, m+slack)
}
