package main

import (
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/automerge"
)

// newSpecEngine is the engine formd has.
func newSpecEngine() crdt.SpecEngine { return automerge.New() }
