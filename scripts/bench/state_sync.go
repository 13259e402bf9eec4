package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func init() {
	register(measurement{
		Figures: []figure{
			{Name: "state-catch-up-bytes", Unit: "x", Target: 3, AtMost: true},
			{Name: "state-newcomer-bytes", Unit: "x", Target: 1.3, AtMost: true},
		},
		Run: measureStateSync,
	})
}

// measureStateSync counts the bytes of an anti-entropy session, both ways: of a
// node that missed one change in a hundred, relative to what has changed, and of
// one that holds only its own admission, relative to all there is.
func measureStateSync(_ context.Context, e *env) (map[string]float64, error) {
	w := newStateWorld()
	e.logf("synchronising the state of %d instances", stateInstances)
	members, err := w.admitAll(stateInstances/statePerOwner, stateNodes)
	if err != nil {
		return nil, err
	}
	raws, ids, err := w.instances(stateInstances)
	if err != nil {
		return nil, err
	}
	raws = append(members, raws...)
	full, behind, empty := w.newState(), w.newState(), w.newState()
	for _, raw := range raws {
		v, err := stmt.Check(raw, w.net)
		if err != nil {
			return nil, err
		}
		for _, s := range []*crdt.State{full, behind} {
			if _, err := s.ApplyVerified(v, time.Time{}); err != nil {
				return nil, err
			}
		}
	}
	if _, err := empty.Apply(members[len(members)-1], time.Time{}); err != nil {
		return nil, err
	}
	changed := 0
	for i := 0; i < stateInstances; i += 100 {
		key := stateKey("owner", i/statePerOwner)
		a, err := crdt.NewAuthor(key, w.net, full.OwnerStatements(stmt.KeyOf(key)))
		if err != nil {
			return nil, err
		}
		a.Now = func() time.Time { return time.Now().Add(time.Hour) }
		made, err := a.Set(ids[i], func(s *crdt.Spec) { s.Replicas++ })
		if err != nil {
			return nil, err
		}
		for _, raw := range made {
			if _, err := full.Apply(raw, time.Time{}); err != nil {
				return nil, err
			}
		}
		changed += totalBytes(made)
	}
	caughtUp, err := sessionBytes(behind, full)
	if err != nil {
		return nil, err
	}
	joined, err := sessionBytes(empty, full)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"state-catch-up-bytes": float64(caughtUp) / float64(changed),
		"state-newcomer-bytes": float64(joined) / float64(totalBytes(full.Held())),
	}, nil
}

func (w *stateWorld) newState() *crdt.State {
	return crdt.NewState(w.net, stmt.KeyOf(w.root), crdt.NewModel())
}

// sessionBytes holds the sessions that a asks b for until they are equal.
func sessionBytes(a, b *crdt.State) (int64, error) {
	var moved atomic.Int64
	for again := true; again; {
		ca, cb := net.Pipe()
		merge := func(s *crdt.State) func([][]byte) error {
			return func(raws [][]byte) error {
				for _, raw := range raws {
					if _, err := s.Apply(raw, time.Time{}); err != nil && !crdt.Transient(err) {
						return err
					}
				}
				return nil
			}
		}
		done := make(chan error, 1)
		go func() {
			_, err := b.Converse(cb, false, merge(b))
			done <- err
		}()
		var err error
		again, err = a.Converse(countingConn{ca, &moved}, true, merge(a))
		if err := errors.Join(err, <-done); err != nil {
			return 0, err
		}
	}
	if a.Fingerprint() != b.Fingerprint() {
		return 0, fmt.Errorf("the session left the states different")
	}
	return moved.Load(), nil
}

// countingConn counts the bytes of both directions.
type countingConn struct {
	net.Conn
	moved *atomic.Int64
}

func (c countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.moved.Add(int64(n))
	return n, err
}

func (c countingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.moved.Add(int64(n))
	return n, err
}
