package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "state-history-bytes", Unit: "x", Target: 1.3, AtMost: true},
			{Name: "state-history-rss", Unit: "x", Target: 1.3, AtMost: true},
			{Name: "state-history-running-rss", Unit: "x", Target: 1.3, AtMost: true},
		},
		Run: func(ctx context.Context, e *env) (map[string]float64, error) {
			return measureHistory(ctx, e, "history", "state-history")
		},
	})
	register(measurement{
		Figures: []figure{
			{Name: "state-history-burst-bytes", Unit: "x", Target: 1.3, AtMost: true},
			{Name: "state-history-burst-rss", Unit: "x", Target: 1.3, AtMost: true},
			{Name: "state-history-burst-running-rss", Unit: "x", Target: 1.3, AtMost: true},
		},
		Run: func(ctx context.Context, e *env) (map[string]float64, error) {
			return measureHistory(ctx, e, "burst", "state-history-burst")
		},
	})
}

const (
	historyInstances = 2000
	historyUpdates   = 100
)

// measureHistory compares a node's log and memory before and after
// historyUpdates updates of each of historyInstances instances, as the role spaces
// them by their owner's clock. Memory is that of a process that has opened the log
// before and after; and, running, of the process that takes the updates, after all
// against after the first of each: what a process has changed once, it holds less
// densely than what it has opened.
func measureHistory(ctx context.Context, e *env, role, figure string) (_ map[string]float64, err error) {
	dir, remove, err := freeSync(e)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	e.logf("%d updates of each of %d instances", historyUpdates, historyInstances)
	w := newStateWorld()
	members, err := w.admitAll(historyInstances/statePerOwner, 1)
	if err != nil {
		return nil, err
	}
	raws, _, err := w.instances(historyInstances)
	if err != nil {
		return nil, err
	}
	if err := writeLog(filepath.Join(dir, "state"), append(members, raws...)); err != nil {
		return nil, err
	}
	var got [3]map[string]float64
	for i, role := range []string{"rest", role, "rest"} {
		if got[i], err = runState(ctx, e, stateTask{Role: role, Dir: dir}); err != nil {
			return nil, err
		}
	}
	e.logf("opened %.1f MiB before and %.1f after; running %.1f after the first update of each, %.1f after all",
		got[0]["rss"], got[2]["rss"], got[1]["first"], got[1]["rss"])
	return map[string]float64{
		figure + "-bytes":       got[2]["bytes"] / got[0]["bytes"],
		figure + "-rss":         got[2]["rss"] / got[0]["rss"],
		figure + "-running-rss": got[1]["rss"] / got[1]["first"],
	}, nil
}

// running opens and runs the replica in Dir/state; stop ends it. before is the
// memory of the process with an empty one.
func (t stateTask) running(ctx context.Context, w *stateWorld) (r *crdt.Replica, before float64, stop func() error, err error) {
	empty, err := crdt.Open(w.config(0, filepath.Join(t.Dir, "empty")))
	if err != nil {
		return nil, 0, nil, err
	}
	before, err = restingMiB()
	if err = errors.Join(err, empty.Close()); err != nil {
		return nil, 0, nil, err
	}
	if r, err = crdt.Open(w.config(0, filepath.Join(t.Dir, "state"))); err != nil {
		return nil, 0, nil, err
	}
	r.View()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return r, before, func() error {
		cancel()
		return <-done
	}, nil
}

// rest measures a node that has nothing to do.
func (t stateTask) rest(ctx context.Context, w *stateWorld) (_ map[string]float64, err error) {
	r, before, stop, err := t.running(ctx, w)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if err := pause(ctx, 2*time.Second); err != nil { // a window: the log is tidied in it
		return nil, err
	}
	after, err := restingMiB()
	return map[string]float64{"rss": after - before, "bytes": float64(r.Stats().LogBytes)}, err
}

// history takes the updates, an hour apart.
func (t stateTask) history(ctx context.Context, w *stateWorld) (map[string]float64, error) {
	return t.updates(ctx, w, time.Hour)
}

// burst takes them within two minutes.
func (t stateTask) burst(ctx context.Context, w *stateWorld) (map[string]float64, error) {
	return t.updates(ctx, w, time.Second)
}

// updates takes them pause apart by their owner's clock.
func (t stateTask) updates(ctx context.Context, w *stateWorld, pause time.Duration) (_ map[string]float64, err error) {
	r, before, stop, err := t.running(ctx, w)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var resting [2]float64
	for i, n := range []int{1, historyUpdates - 1} {
		for o := range historyInstances / statePerOwner {
			if err := updateOwner(ctx, w, r, o, n, pause); err != nil {
				return nil, err
			}
		}
		if resting[i], err = restingMiB(); err != nil {
			return nil, err
		}
	}
	return map[string]float64{"first": resting[0] - before, "rss": resting[1] - before}, nil
}

// updateOwner changes each of the owner's instances n times.
func updateOwner(ctx context.Context, w *stateWorld, r *crdt.Replica, o, n int, pause time.Duration) error {
	key := stateKey("owner", o)
	a, err := crdt.NewAuthor(key, w.net, r.OwnerStatements(stmt.KeyOf(key)))
	if err != nil {
		return err
	}
	specs := a.Instances()
	for i := range n {
		now := time.Now().Add(time.Duration(i+1) * pause)
		a.Now = func() time.Time { return now }
		for _, spec := range specs {
			raws, err := a.Set(spec.ID, func(s *crdt.Spec) { s.Replicas = 3 + i%2; s.Restart++ })
			if err == nil {
				_, err = r.Submit(ctx, raws...)
			}
			if err != nil {
				return fmt.Errorf("update %d of %s: %w", i, spec.ID, err)
			}
		}
	}
	return nil
}
