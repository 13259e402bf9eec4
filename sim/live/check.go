package live

import (
	"fmt"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/sim/des"
)

// Converged says whether all nodes that are up hold the same statements.
func (s *Swarm) Converged() bool {
	var want stmt.ID
	for k, i := range s.Up() {
		got := s.nodes[i].state.Fingerprint()
		if k == 0 {
			want = got
		}
		if got != want {
			return false
		}
	}
	return true
}

// Lonely are the nodes that are up and have fewer than so many peers.
func (s *Swarm) Lonely(peers int) (out []int) {
	for _, i := range s.Up() {
		if len(s.nodes[i].net.Peers()) < peers {
			out = append(out, i)
		}
	}
	return out
}

// Lacking are the nodes that are up and do not hold a statement that waits for
// nothing: an instance's, by ID.
func (s *Swarm) Lacking(instance string) (out []int) {
	for _, i := range s.Up() {
		if _, has := s.nodes[i].state.View().Instance(instance); !has {
			out = append(out, i)
		}
	}
	return out
}

// UnequalViews names two nodes whose views differ in anything they say.
func (s *Swarm) UnequalViews() error {
	var want string
	up := s.Up()
	for k, i := range up {
		got := des.Render(s.nodes[i].state.View())
		if k == 0 {
			want = got
		}
		if got != want {
			return fmt.Errorf("views of nodes %d and %d differ", up[0], i)
		}
	}
	return nil
}

// Unacknowledged names a statement that an owner was told is safe and that is news
// to a node that is up. It is for when all nodes agree.
func (s *Swarm) Unacknowledged() error {
	up := s.Up()
	if len(up) == 0 || !s.Converged() {
		return fmt.Errorf("%d nodes are up, and they do not agree", len(up))
	}
	again := crdt.NewState(s.id, stmt.KeyOf(s.root), crdt.NewModel())
	for _, raw := range s.nodes[up[0]].state.Held() {
		if _, err := again.Apply(raw, time.Time{}); err != nil && !crdt.Transient(err) {
			return fmt.Errorf("held by node %d: %w", up[0], err)
		}
	}
	for _, v := range s.acked {
		st := v.Statement()
		if changed, err := again.ApplyVerified(v, time.Time{}); changed || err != nil && !crdt.Transient(err) {
			return fmt.Errorf("the acknowledged %s statement %.8s is lost (%v)", st.Kind, st.ID, err)
		}
	}
	return nil
}
