package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func TestReadVoters(t *testing.T) {
	a, b, c := stmt.Key{1}.String(), stmt.Key{2}.String(), stmt.Key{3}.String()
	for text, want := range map[string]string{
		"auto": "3 []", "1": "1 []", "9": "9 []", a: "3 [" + a + "]", a + "," + b + "," + c: fmt.Sprintf("3 [%s %s %s]", a, b, c),
		"0": "", "2": "", "11": "", "-1": "", "": "", "soon": "", a + "," + b: "", a + "," + a + "," + b: "", a + ",": "",
		strings.Repeat(a+",", 10) + a: "",
	} {
		w, err := readVoters(text, true)
		if got := fmt.Sprint(w.n, w.keys); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("%q: %s, %v; want %q", text, got, err, want)
		}
	}
}

// Voters are live, an odd number, and the same whoever picks; other names get
// others.
func TestPickVoters(t *testing.T) {
	var nodes []api.Node
	for i := range byte(8) {
		nodes = append(nodes, api.Node{Key: stmt.Key{i + 1}, CPUs: 4, Memory: 8 << 30, Disk: 100 << 30, Live: "alive"})
	}
	nodes[2].Live, nodes[3].Draining = "dead", true
	for _, tc := range []struct{ nodes, n, want int }{{8, 3, 3}, {8, 9, 5}, {2, 3, 1}, {1, 3, 1}, {8, 1, 1}} {
		got, err := pickVoters(nodes[:tc.nodes], voterWish{n: tc.n}, "web")
		if err != nil || len(got) != tc.want {
			t.Errorf("%d of %d nodes: %v, %v", tc.n, tc.nodes, got, err)
		}
		if slices.Contains(got, nodes[2].Key) || slices.Contains(got, nodes[3].Key) {
			t.Errorf("picks a node that is dead or leaving: %v", got)
		}
	}
	used := map[stmt.Key]bool{}
	for i := range 20 {
		got, err := pickVoters(nodes, voterWish{n: 1}, fmt.Sprint("app", i))
		if err != nil {
			t.Fatal(err)
		}
		used[got[0]] = true
	}
	if len(used) < 3 {
		t.Errorf("20 names share the voters %v", used)
	}
	if _, err := pickVoters(nil, voterWish{n: 3}, "web"); err == nil {
		t.Error("nobody votes, and that is no error")
	}
	var said *cli.Error
	if _, err := pickVoters(nodes, voterWish{keys: []stmt.Key{{77}}}, "web"); !errors.As(err, &said) || said.Code != api.ExitNotFound {
		t.Errorf("a voter that is no node: %v", err)
	}
}

// update --voters replaces them, which is a new term; under keep it is refused.
func TestUpdateVoters(t *testing.T) {
	h := newHome(t)
	self := stmt.KeyOf(testKey(9))
	if err := h.daemon.SetNode(t.Context(), crdt.Node{Total: crdt.Resources{CPUs: 4, Memory: 8 << 30, Disk: 100 << 30}}); err != nil {
		t.Fatal(err)
	}
	plain := h.ships(crdt.Spec{Name: "plain", Replicas: 1})
	id := h.ships(crdt.Spec{Name: "web", Replicas: 1, Partition: crdt.PartitionFence, Voters: []stmt.Key{{1}, {2}, {3}}})
	code, out, talk := h.form("manage", "update", "web", "--voters", "auto")
	s := h.spec(id)
	if code != api.ExitOK || out != "web: updating\n" || s.Term != 1 || !slices.Contains(s.Voters, self) || s.Recreate != 0 {
		t.Errorf("exit %d, %q, %q: %+v", code, out, talk, s)
	}
	if !strings.Contains(talk, "most of the former voters do not answer") {
		t.Errorf("no warning that the former voters may live on: %q", talk)
	}
	if code, _, talk := h.form("manage", "update", "plain", "--voters", "auto"); code != api.ExitUsage || h.spec(plain).Voters != nil {
		t.Errorf("voters under keep: exit %d, %q", code, talk)
	}
	if code, _, talk := h.form("manage", "update", "web", "--replicas", "2"); code != api.ExitOK || h.spec(id).Term != 1 {
		t.Errorf("exit %d, %q: %+v", code, talk, h.spec(id))
	}
}
