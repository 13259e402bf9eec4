package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// manage explain says all of what the API does, to people and to programs.
func TestManageExplain(t *testing.T) {
	h := newHome(t)
	id := h.ships(crdt.Spec{Name: "web", Replicas: 1})
	a, b, c := stmt.Key{1}, stmt.Key{2}, stmt.Key{3}
	due := int64(240)
	x := api.Explain{
		Eligible: []api.ExplainNode{{Node: a, Live: "alive", Weight: 64}, {Node: b, Live: "alive", Domain: "attic", Weight: 128}},
		Excluded: []api.ExplainNode{{Node: c, Live: "dead", Weight: 64, Reason: "does not answer"}},
		Slots: []api.ExplainSlot{{
			Slot: 0, Keeper: &a, Rank: []stmt.Key{b, a}, Due: &due, Claims: []api.Replica{},
			Why: []string{"A has claimed it, generation 2", "the ranking prefers B: it moves there in 4m0s"},
		}},
		Budget: api.ExplainBudget{Takeovers: 3, Slots: 12, RepairBytes: 512 << 20, Bytes: 2 << 30, Moves: 1, MovesMost: 4, Window: 300},
	}
	h.daemon.explained, h.daemon.word, h.daemon.reason = x, api.StatusPending, "0 of 1 replicas ready"
	code, out, talk := h.form("manage", "explain", "web")
	want := `web (ID): PENDING 0 of 1 replicas ready

replica 0
  claimed by nobody
  A has claimed it, generation 2
  the ranking prefers B: it moves there in 4m0s
  rank 0  B  weight 128, domain attic
  rank 1  A  weight 64

nodes that may run it
  A  alive  weight 64
  B  alive  weight 128, domain attic

nodes that may not
  C  dead  weight 64  does not answer

the node that answers, in the last minute: 3 of 12 takeovers, 512 MiB of 2 GiB begun to fetch for them
in the last 5m0s: 1 of 4 replicas moved here
`
	got := strings.NewReplacer(id, "ID", a.String(), "A", b.String(), "B", c.String(), "C").Replace(out)
	if code != api.ExitOK || got != want {
		t.Errorf("%d %s\n%s\nwant\n%s", code, talk, got, want)
	}
	code, out, talk = h.form("manage", "explain", "web", "--json")
	var back api.Explain
	if err := json.Unmarshal([]byte(out), &back); code != api.ExitOK || err != nil {
		t.Fatalf("%d %v %s", code, err, talk)
	}
	x.ID, x.Name, x.Status, x.Reason = id, "web", api.StatusPending, "0 of 1 replicas ready"
	if !reflect.DeepEqual(back, x) {
		t.Errorf("--json:\n%+v\nwant\n%+v", back, x)
	}
}
