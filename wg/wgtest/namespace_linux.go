package wgtest

import (
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
