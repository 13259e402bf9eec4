package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "state-load-ratio", Unit: "x", Target: 1.5, AtMost: true},
			{Name: "state-load-rss", Unit: "MiB", Target: 120, AtMost: true},
			{Name: "state-update-ratio", Unit: "x", Target: 5, AtMost: true},
			{Name: "state-claim-ratio", Unit: "x", Target: 5, AtMost: true},
		},
		Run: measureStateLoad,
	})
	register(measurement{
		Figures: []figure{{Name: "state-claims-rss", Unit: "MiB", Target: 250, AtMost: true}},
		Run:     measureStateClaims,
	})
}

// stateRounds is how often what is made once is measured; the median counts.
const stateRounds = 3

// freeSync is a scratch folder where fsync costs nothing, if there is one: what is
// measured there is not the disk.
func freeSync(e *env) (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp("/dev/shm", "formation-bench-*")
	if err != nil {
		e.logf("no /dev/shm: figures of the state include the disk")
		dir, err = os.MkdirTemp(e.Dir, "state-*")
	}
	return dir, func() error { return os.RemoveAll(dir) }, err
}

// stateLog writes the log of a replica that holds stateInstances instances, and
// with claims also those of stateNodes nodes on them.
func stateLog(ctx context.Context, dir string, claims int) error {
	w := newStateWorld()
	members, err := w.admitAll(stateInstances/statePerOwner, stateNodes)
	if err != nil {
		return err
	}
	raws, ids, err := w.instances(stateInstances)
	if err != nil {
		return err
	}
	raws = append(members, raws...)
	if claims > 0 {
		more, err := w.claims(ctx, dir, members, ids, claims/stateNodes)
		if err != nil {
			return err
		}
		raws = append(raws, more...)
	}
	return writeLog(filepath.Join(dir, "state"), raws)
}

func measureStateLoad(ctx context.Context, e *env) (_ map[string]float64, err error) {
	dir, remove, err := freeSync(e)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	e.logf("loading the state of %d instances", stateInstances)
	if err := stateLog(ctx, dir, 0); err != nil {
		return nil, err
	}
	var ratios, rss []float64
	for range stateRounds {
		load, err := runState(ctx, e, stateTask{Role: "load", Dir: dir})
		if err != nil {
			return nil, err
		}
		ratios, rss = append(ratios, load["ratio"]), append(rss, load["rss"])
	}
	// Last, as it changes what is on disk; it has a median of its own.
	update, err := runState(ctx, e, stateTask{Role: "update", Dir: dir})
	if err != nil {
		return nil, err
	}
	claim, err := runState(ctx, e, stateTask{Role: "claim", Dir: dir})
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"state-load-ratio": median(ratios), "state-load-rss": median(rss),
		"state-update-ratio": update["ratio"], "state-claim-ratio": claim["ratio"],
	}, nil
}

func measureStateClaims(ctx context.Context, e *env) (_ map[string]float64, err error) {
	dir, remove, err := freeSync(e)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	const claims = 100_000
	e.logf("loading the state of %d instances and %d claims", stateInstances, claims)
	if err := stateLog(ctx, dir, claims); err != nil {
		return nil, err
	}
	load, err := runState(ctx, e, stateTask{Role: "load", Dir: dir})
	if err != nil {
		return nil, err
	}
	return map[string]float64{"state-claims-rss": load["rss"]}, nil
}
