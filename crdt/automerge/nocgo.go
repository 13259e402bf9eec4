//go:build !cgo

package automerge

import "github.com/formthefog/formation/crdt"

// Name says which engine New returns.
const Name = "model"

// New returns the pure-Go model: this build has no cgo.
func New() crdt.SpecEngine { return crdt.NewModel() }
