package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// An agent ends when nobody has needed it for a while, also after somebody has.
func TestIdleAgentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		s := &server{stop: stop, busy: make(chan struct{}, 1)}
		go s.watch(ctx, time.Hour)
		begun := time.Now()
		if !s.enter() {
			t.Fatal("no room for the first")
		}
		time.Sleep(3 * time.Hour)
		if synctest.Wait(); ctx.Err() != nil {
			t.Fatalf("it ended while it was needed")
		}
		s.leave()
		<-ctx.Done()
		if took := time.Since(begun); took != 4*time.Hour {
			t.Errorf("it ended after %s, want an hour after the last has left", took)
		}
	})
}
