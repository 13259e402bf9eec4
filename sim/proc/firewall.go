package proc

import (
	"fmt"
	"net/netip"
	"strings"
)

// address of a node. 44.128.0.0/16 is for experiments, and public as far as libp2p
// can tell.
func address(n int) netip.Addr { return netip.AddrFrom4([4]byte{44, 128, 0, byte(n + 1)}) }

// wall is what a node does not let in.
type wall struct {
	from []netip.Addr // whom it hears nothing from
	loss float64      // of the rest
}

// lossUnit is how finely losses are drawn.
const lossUnit = 10_000

// rules is what nft is told to have a wall, whatever it was told before.
func (w wall) rules() string {
	var b strings.Builder
	b.WriteString("table inet formsim\ndelete table inet formsim\ntable inet formsim {\n\tchain in {\n\t\ttype filter hook input priority 0;\n")
	if len(w.from) > 0 {
		words := make([]string, len(w.from))
		for i, a := range w.from {
			words[i] = a.String()
		}
		fmt.Fprintf(&b, "\t\tip saddr { %s } drop\n", strings.Join(words, ", "))
	}
	switch n := int(w.loss*lossUnit + 0.5); {
	case n >= lossUnit: // numgen has no such number
		b.WriteString("\t\tiifname != \"lo\" drop\n")
	case n > 0:
		fmt.Fprintf(&b, "\t\tiifname != \"lo\" numgen random mod %d < %d drop\n", lossUnit, n)
	}
	b.WriteString("\t}\n}\n")
	return b.String()
}
