//go:build e2e && linux

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/proc"
	"github.com/formthefog/formation/sim/scenario"
)

// mutant is the daemon with a fault of its own on three nodes: n1's ends by itself in
// its second life, n2's leaves a process, and n3's has a machine that ends with it, as
// far as anybody can see.
const mutant = `#!/bin/sh
formd=$1; shift
me=${HOME##*/}
case $me in
node1)
	echo >>"$HOME/lives"
	[ "$(wc -l <"$HOME/lives")" != 2 ] || exec timeout --signal KILL 5 "$formd" "$@" ;;
node2) setsid sleep 600 >/dev/null 2>&1 </dev/null & ;;
node3)
	[ -e "$HOME/qemu-system-no" ] || cp "$(command -v sleep)" "$HOME/qemu-system-no"
	setpriv --pdeathsig KILL "$HOME/qemu-system-no" 600 >/dev/null 2>&1 </dev/null & ;;
esac
exec "$formd" "$@"
`

const mutated = `about: what is wrong with daemons is seen, and nothing else
nodes: 6
tiers: [proc]
workload: {instances: 2, replicas: 2}
schedule:
  - {at: 1s, do: bounce, node: 1, for: 1s, kind: daemon}
  - {at: 2s, do: bounce, node: 3, for: 1s, kind: daemon}
  - {at: 4s, do: change, node: 0}
until: 12s
calm: true
expect: {settle: 1m, agree: 30s}
sometimes: [crash]
`

// What real daemons do wrong is found, for what it is and where.
func TestE2EMutantsAreFound(t *testing.T) {
	rooted(t)
	script := filepath.Join(t.TempDir(), "mutant")
	if err := os.WriteFile(script, []byte(mutant), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := scenario.Parse("mutated", []byte(mutated))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Expand(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	before := hostState(t)
	formd := filepath.Join(required(t, "FORMATION_BIN"), "formd")
	res, err := proc.Run(t.Context(), proc.Config{Plan: p, Formd: []string{script, formd}, Note: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	want := map[des.Invariant]string{
		proc.DaemonsStay:   "the daemon of n1 has ended by itself",
		proc.MachinesStay:  "n3: machine ",
		proc.LeavesNothing: "sleep 600",
	}
	for _, b := range res.Bad {
		if w, known := want[b.Of]; !known || !strings.Contains(b.What, w) {
			t.Errorf("found as well: %v", b)
		}
	}
	for of, w := range want {
		if !slices.ContainsFunc(res.Bad, func(b des.Broken) bool { return b.Of == of }) {
			t.Errorf("not found: %s, %s", of, w)
		}
	}
	if after := hostState(t); after != before {
		t.Errorf("in the end there is\n%s\nand there was\n%s", after, before)
	}
}
