package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/place"
	"github.com/formthefog/formation/crdt/stmt"
)

// defaultVoters is how many nodes vote where nobody says: one of them may fail.
const defaultVoters = 3

// voterWish is what --voters asks for.
type voterWish struct {
	given bool
	n     int        // so many, picked; when keys is nil
	keys  []stmt.Key // these
}

// readVoters reads auto, a number, or keys.
func readVoters(text string, given bool) (voterWish, error) {
	w := voterWish{given: given, n: defaultVoters}
	if !given || text == "auto" {
		return w, nil
	}
	if n, err := strconv.Atoi(text); err == nil {
		if n < 1 || n > crdt.MaxVoters || n%2 == 0 {
			return w, cli.Errorf(api.ExitUsage, "--voters: %d is not an odd number between 1 and %d", n, crdt.MaxVoters)
		}
		w.n = n
		return w, nil
	}
	for word := range strings.SplitSeq(text, ",") {
		k, err := stmt.ParseKey(word)
		if err != nil {
			return w, cli.Errorf(api.ExitUsage, "--voters: %q is neither auto, nor a number, nor a node's key", word).Hint("whose keys there are: form node ls")
		}
		if slices.Contains(w.keys, k) {
			return w, cli.Errorf(api.ExitUsage, "--voters: %s is named twice", k)
		}
		w.keys = append(w.keys, k)
	}
	if len(w.keys)%2 == 0 || len(w.keys) > crdt.MaxVoters {
		return w, cli.Errorf(api.ExitUsage, "--voters: %d nodes; it takes an odd number of at most %d, so that there is a majority", len(w.keys), crdt.MaxVoters)
	}
	return w, nil
}

// voters are the nodes that vote on an instance under a partition contract, old
// those it has. None vote under keep.
func (a *app) voters(ctx context.Context, c *swarm.Conn, w voterWish, contract, name string, old []stmt.Key) ([]stmt.Key, error) {
	if contract != crdt.PartitionStopMinority && contract != crdt.PartitionFence {
		if w.given {
			return nil, cli.Errorf(api.ExitUsage, "--voters: %s has the partition contract keep, which counts no voters", name).
				Hint("write PARTITION stop-minority or PARTITION fence into its Formfile")
		}
		return nil, nil
	}
	if !w.given && len(old) > 0 {
		return old, nil
	}
	nodes, err := c.API().Nodes(ctx)
	if err != nil {
		return nil, err
	}
	picked, err := pickVoters(nodes, w, name)
	if err != nil {
		return nil, err
	}
	a.warnVoters(nodes, picked, old, contract)
	return picked, nil
}

// votersOf are the voters that an instance of mine has.
func votersOf(mine []crdt.Spec, id string) []stmt.Key {
	for i := range mine {
		if mine[i].ID == id {
			return mine[i].Voters
		}
	}
	return nil
}

// pickVoters are the nodes that w means: without keys the first live ones in an
// order of the name's own, so that no node votes on everything.
func pickVoters(nodes []api.Node, w voterWish, name string) ([]stmt.Key, error) {
	if w.keys != nil {
		for _, k := range w.keys {
			if !slices.ContainsFunc(nodes, func(n api.Node) bool { return n.Key == k }) {
				return nil, cli.Errorf(api.ExitNotFound, "--voters: the swarm has no node %s", k).Hint("whose keys there are: form node ls")
			}
		}
		return w.keys, nil
	}
	var live []place.Candidate
	for _, n := range nodes {
		if n.Live == "alive" {
			total := crdt.Resources{CPUs: n.CPUs, Memory: n.Memory, Disk: n.Disk}
			live = append(live, place.Candidate{Key: n.Key, Total: total, Draining: n.Draining, Alive: true})
		}
	}
	order := place.Order(crdt.Spec{ID: name, VCPU: 1, MemoryBytes: 1, DiskBytes: 1}, live)
	if len(order) == 0 {
		return nil, cli.Errorf(api.ExitFailed, "no node is alive to vote on %s", name).Hint("who is there: form node ls").Hint("name them: --voters KEY,…")
	}
	n := min(w.n, len(order))
	return order[:n-(n+1)%2], nil // an odd number
}

// warnVoters says what the owner should know of a choice of voters.
func (a *app) warnVoters(nodes []api.Node, picked, old []stmt.Key, contract string) {
	names := make([]string, 0, len(picked))
	for _, k := range picked {
		names = append(names, short(k))
	}
	a.p.Note("voters: %s", strings.Join(names, " "))
	if len(picked) < defaultVoters {
		a.p.Warn("%d of %d nodes votes: when it is away nothing runs\nhint: with three nodes or more: form manage update INSTANCE --voters auto", len(picked), len(nodes))
	}
	alive := 0
	for _, k := range old {
		if slices.ContainsFunc(nodes, func(n api.Node) bool { return n.Key == k && n.Live == "alive" }) {
			alive++
		}
	}
	if contract == crdt.PartitionFence && len(old) > 0 && 2*alive <= len(old) {
		a.p.Warn("most of the former voters do not answer here: if they live on somewhere else and do not hear of this change, they let a second replica run there")
	}
}
