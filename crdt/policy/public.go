package policy

import (
	"strconv"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Port is one that an instance exposes.
type Port struct {
	Number int
	Proto  string // "tcp" or "udp"
	Public bool   // to everybody
}

// maxExposed is how many of an instance's ports count; a pack has no more.
const maxExposed = 64

// ParsePort reads a port as a spec has it: "8080/tcp", or "8080/tcp public".
func ParsePort(word string) (Port, bool) {
	word, public := strings.CutSuffix(word, " public")
	number, proto, _ := strings.Cut(word, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || number[0] == '0' || proto != "tcp" && proto != "udp" {
		return Port{}, false
	}
	return Port{int(n), proto, public}, true
}

// String is what ParsePort reads.
func (p Port) String() string {
	text := strconv.Itoa(p.Number) + "/" + p.Proto
	if p.Public {
		text += " public"
	}
	return text
}

// PublicPorts returns what an instance offers to everybody, in its order, each
// once.
func PublicPorts(spec *crdt.Spec) (out []Port) {
	seen := map[Port]bool{}
	for _, word := range spec.Expose[:min(len(spec.Expose), maxExposed)] {
		if p, ok := ParsePort(word); ok && p.Public && !seen[p] {
			seen[p] = true
			out = append(out, p)
		}
	}
	return out
}

// IsPublic says whether an instance offers a port to everybody.
func IsPublic(spec *crdt.Spec, proto string, number int) bool {
	for _, p := range PublicPorts(spec) {
		if p.Proto == proto && p.Number == number {
			return true
		}
	}
	return false
}

// Place is where a replica runs.
type Place struct {
	Slot int
	Node stmt.Key
}

// Serving returns where replicas of an instance are that are ready, as far as the
// claims that count say; of a slot the latest first.
func Serving(s Claims, spec crdt.Spec) (out []Place) {
	for _, c := range counting(s, spec) {
		if c.Ready {
			out = append(out, Place{c.Slot, c.Node})
		}
	}
	return out
}
