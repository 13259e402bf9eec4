package proc

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/des"
	"github.com/formthefog/formation/sim/scenario"
)

// A check that cannot fail is none: what this file has is each of them, failing.

// answers are what a daemon that is none says, by path.
type answers map[string]any

// serve has a node's API give these answers.
func serve(t *testing.T, a answers) *client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, known := a[r.URL.Path]
		if !known {
			http.NotFound(w, r)
			return
		}
		if err := json.NewEncoder(w).Encode(body); err != nil {
			t.Error(err)
		}
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(srv.Close(), <-ended); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return newClient(socket)
}

// told is a swarm of two nodes whose daemons are answers: an owner's one instance, of
// two replicas, runs on both. Change is asked about each node's before they are given.
type told struct {
	*run
	id string
}

func tells(t *testing.T, change func(node int, a answers)) told {
	t.Helper()
	r := looking(2)
	r.Note, r.res, r.seen, r.fenced = func(string, ...any) {}, &Result{}, map[string]int{}, map[string]bool{}
	root := stmt.Key{1}
	r.network = stmt.NewNetworkID("x", root)
	o := newOwner(1, 0)
	au, err := crdt.NewAuthor(o.key, r.network, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, made, err := au.Create(crdt.Spec{Name: "web", Pack: des.PackName(1), Replicas: 2, Phase: crdt.PhaseRunning})
	if err != nil {
		t.Fatal(err)
	}
	o.acked, o.named["web"], r.owners = made, id, []*owner{o}
	var list []map[string]any
	for i, n := range r.nodes {
		n.key = stmt.Key{byte(10 + i)}
		list = append(list, map[string]any{"key": n.key})
	}
	for i, n := range r.nodes {
		replicas := []any{
			map[string]any{"node": r.nodes[0].key, "slot": 0, "ready": true, "live": i == 0},
			map[string]any{"node": r.nodes[1].key, "slot": 1, "ready": true},
		}
		a := answers{
			"/v1/nodes":  list,
			"/v1/status": map[string]any{"nodes_alive": 2, "local_vms": 1},
			"/v1/instances": []any{map[string]any{
				"id": id, "name": "web", "pack": des.PackName(1), "owner": stmt.KeyOf(o.key),
				"desired": map[string]any{"replicas": 2}, "spec": map[string]any{"restart": 0}, "replicas": replicas,
			}},
			o.path(): statements{made},
		}
		if change != nil {
			change(i, a)
		}
		n.client = serve(t, a)
	}
	return told{r, id}
}

// first is the one instance that answers list.
func (a answers) first() map[string]any { return a["/v1/instances"].([]any)[0].(map[string]any) }

func (a answers) replica(slot int) map[string]any {
	return a.first()["replicas"].([]any)[slot].(map[string]any)
}

// What daemons say that run as they are to is found right; each thing that is other is
// found, and only what it breaks.
func TestWrongAnswersAreFound(t *testing.T) {
	ownerPath := newOwner(1, 0).path()
	for _, c := range []struct {
		name   string
		change func(node int, a answers)
		want   []des.Invariant
	}{
		{name: "nothing is wrong"},
		{"one of two lists no instance", func(i int, a answers) {
			if i == 1 {
				a["/v1/instances"] = []any{}
			}
		}, []des.Invariant{Agrees, Settles, ListedAsSigned}},
		{"one of two knows one node less", func(i int, a answers) {
			if i == 1 {
				a["/v1/nodes"] = a["/v1/nodes"].([]map[string]any)[:1]
			}
		}, []des.Invariant{Agrees, Settles}},
		{"all list a replica as lost", func(_ int, a answers) {
			a.first()["replicas"] = a.first()["replicas"].([]any)[:1]
		}, []des.Invariant{Settles}},
		{"two replicas of one slot", func(_ int, a answers) { a.replica(1)["slot"] = 0 }, []des.Invariant{Settles}},
		{"a replica that is not ready", func(_ int, a answers) { a.replica(1)["ready"] = false }, []des.Invariant{Settles}},
		{"a fenced one that runs twice by the list", func(_ int, a answers) {
			a.first()["spec"].(map[string]any)["partition"] = crdt.PartitionFence
		}, []des.Invariant{Settles}},
		{"a machine that no replica is of", func(i int, a answers) {
			if i == 1 {
				a["/v1/status"].(map[string]any)["local_vms"] = 2
			}
		}, []des.Invariant{Settles}},
		{"all list other than was signed", func(_ int, a answers) {
			a.first()["spec"].(map[string]any)["restart"] = 1
		}, []des.Invariant{ListedAsSigned}},
		{"all list what nobody signed", func(_ int, a answers) { a[ownerPath] = statements{} }, []des.Invariant{des.AckedKept, ListedAsSigned, des.AckedKept, ListedAsSigned}},
		{"one has lost what was acknowledged", func(i int, a answers) {
			if i == 1 {
				a[ownerPath], a["/v1/instances"] = statements{}, []any{}
			}
		}, []des.Invariant{Agrees, Settles, des.AckedKept}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := tells(t, c.change)
			// It is looked at once: nothing else would be said later.
			r.Plan = &scenario.Plan{Scenario: &scenario.Scenario{Expect: scenario.Expect{Agree: time.Nanosecond, Settle: time.Nanosecond}}}
			if err := r.judge(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.found(t, "it", c.want...)
		})
	}
}

// A fenced instance that two nodes' machines ran at once is found, and so is one of
// which nothing was seen; any other instance may.
func TestFencesAreHeld(t *testing.T) {
	for _, c := range []struct {
		name   string
		fenced bool
		spans  [][3]float64 // node, from, to
		want   []des.Invariant
	}{
		{"one after the other", true, [][3]float64{{0, 1, 5}, {1, 6, 9}}, nil},
		{"at once", true, [][3]float64{{0, 1, 5}, {1, 4, 9}}, []des.Invariant{des.FencedOnce}},
		{"at once, and it may", false, [][3]float64{{0, 1, 5}, {1, 4, 9}}, nil},
		{"never seen", true, nil, []des.Invariant{Settles}},
	} {
		r := tells(t, nil)
		r.fenced[r.id], r.ticks = c.fenced, &watcher{Ticks: Ticks{Pause: 2 * time.Second}}
		for _, s := range c.spans {
			for x := s[1]; x <= s[2]; x++ {
				at := r.began.Add(time.Duration(x * float64(time.Second)))
				r.ticks.Ticked(int(s[0]), r.id, 0, at, at)
			}
		}
		r.fences()
		r.found(t, c.name, c.want...)
	}
}

// found holds a run to what it is to have found, each once however many are.
func (r *run) found(t *testing.T, name string, want ...des.Invariant) {
	t.Helper()
	var got []des.Invariant
	for _, b := range r.res.Bad {
		got = append(got, b.Of)
	}
	if !slices.Equal(slices.Compact(got), want) {
		t.Errorf("%s: found %v, want %v", name, r.res.Bad, want)
	}
}

// A swarm that has ended and left a process, a mount, a socket or a folder is found to
// have; and so is what is left once all is taken away.
func TestLeftoversAreFound(t *testing.T) {
	rooted(t)
	h := made(t, os.Getpid(), 2, nil)
	r := looking(2)
	r.h, r.Note, r.res, r.seen = h, func(string, ...any) {}, &Result{}, map[string]int{}
	for _, n := range r.nodes {
		n.h, n.cmd, n.log = h, nil, h.path("log")
	}
	r.endAll()
	r.found(t, "nothing is left")

	asleep(t, h, "ip", "netns", "exec", h.ns(1))
	inner := filepath.Join(h.disk(1), "inner")
	if err := errors.Join(os.Mkdir(inner, 0o700), syscall.Mount("formsim", inner, "tmpfs", 0, "size=1m")); err != nil {
		t.Fatal(err)
	}
	for _, n := range r.nodes {
		l, err := net.Listen("unix", filepath.Join(n.dir(), "left.sock"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() }) // its file is removed with the run's folder
	}
	r.nodes[0].gone = true // who tidies nothing up
	r.endAll()
	r.found(t, "a process, a mount and a socket", LeavesNothing)
	words := []string{"process ", inner, r.nodes[1].dir()}
	if len(r.res.Bad) != len(words) {
		t.Fatal(r.res.Bad)
	}
	for k, word := range words {
		if !strings.Contains(r.res.Bad[k].What, word) {
			t.Errorf("no word of %s: %v", word, r.res.Bad[k])
		}
	}
}
