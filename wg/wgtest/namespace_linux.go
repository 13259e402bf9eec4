package wgtest

import (
	"fmt"
	"os"
	"testing"
)

// Namespace is a network namespace of a test; what fails, fails the test.
type Namespace struct {
	*NetNS
	tb testing.TB
}

// NewNamespace makes one, which ends with the test. It skips the test without root.
func NewNamespace(tb testing.TB, name string) *Namespace {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("network namespaces need root")
	}
	n, err := AddNetNS(tb.Context(), name)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := n.Remove(); err != nil {
			tb.Error(err)
		}
	})
	return &Namespace{n, tb}
}

// Run runs a command in the namespace and returns what it says.
func (n *Namespace) Run(args ...string) string {
	n.tb.Helper()
	out, err := n.Output(n.tb.Context(), args...)
	if err != nil {
		n.tb.Fatal(err)
	}
	return out
}

// Link is [Connect].
func Link(a *Namespace, nameA, addressA string, b *Namespace, nameB, addressB string) {
	a.tb.Helper()
	if err := Connect(a.tb.Context(), a.NetNS, nameA, addressA, b.NetNS, nameB, addressB); err != nil {
		a.tb.Fatal(err)
	}
}

// NAT has the namespace translate what leaves by an interface, as masquerade says
// ("" keeps ports where it can, "fully-random" gives each destination another), and let
// nothing in there that nobody has asked for.
func (n *Namespace) NAT(out, masquerade string) {
	n.tb.Helper()
	n.Run("nft", fmt.Sprintf(`
		add table ip nat
		add chain ip nat post { type nat hook postrouting priority 100; }
		add rule ip nat post oifname "%[1]s" masquerade %[2]s
		add table ip filter
		add chain ip filter in { type filter hook input priority 0; }
		add rule ip filter in iifname "%[1]s" ct state new drop
		add chain ip filter forward { type filter hook forward priority 0; }
		add rule ip filter forward iifname "%[1]s" ct state new drop`, out, masquerade))
}
