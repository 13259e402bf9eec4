package proc

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// owner is somebody who has instances, and what it was told is safe.
type owner struct {
	key   ed25519.PrivateKey
	acked [][]byte          // statements that a node has acknowledged, in that order
	named map[string]string // the name of each instance it has shipped, to its ID
	// ended are the instances that it has tried to delete: whether the statement is
	// somewhere is not known unless it was acknowledged.
	ended map[string]bool
}

// newOwner is the n-th owner by a seed.
func newOwner(seed uint64, n int) *owner {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte("formation proc owner"), seed), uint64(n)))
	return &owner{key: ed25519.NewKeyFromSeed(sum[:]), named: map[string]string{}, ended: map[string]bool{}}
}

func (o *owner) path() string { return "/v1/owners/" + stmt.KeyOf(o.key).String() + "/statements" }

// author is the owner as it comes to a node: it knows what that node does.
func (o *owner) author(ctx context.Context, c *client, network stmt.NetworkID) (*crdt.Author, error) {
	have, err := get[statements](ctx, c, o.path())
	if err != nil {
		return nil, err
	}
	return crdt.NewAuthor(o.key, network, have.Statements)
}

// submit hands statements to a node. Only without an error are they acknowledged;
// with one they may have arrived all the same.
func (o *owner) submit(ctx context.Context, c *client, raws [][]byte) error {
	if len(raws) == 0 {
		return nil
	}
	got, err := post[submitted](ctx, c, "/v1/statements", statements{raws})
	if err != nil {
		return err
	}
	if len(got.IDs) != len(raws) {
		return fmt.Errorf("%d of %d statements were acknowledged", len(got.IDs), len(raws))
	}
	o.acked = append(o.acked, raws...)
	return nil
}

// believes holds a node's statements of the owner to what was acknowledged: each of
// those must be among them, or be nothing new to who knows them. It returns the
// instances that the statements say there are.
func (o *owner) believes(raws [][]byte, network stmt.NetworkID) ([]crdt.Spec, error) {
	// Of an open network: who is a member is for the nodes to judge.
	state := crdt.NewState(network, stmt.Key{}, crdt.NewModel())
	for _, raw := range raws {
		// Early and stale ones are told from lost ones below.
		if _, err := state.Apply(raw, time.Time{}); err != nil && !crdt.Transient(err) {
			return nil, fmt.Errorf("a statement does not verify: %w", err)
		}
	}
	has := slices.Clone(state.View().InstancesOf(stmt.KeyOf(o.key)))
	var lost error
	for _, raw := range o.acked {
		changed, err := state.Apply(raw, time.Time{})
		if changed || err != nil && !crdt.Transient(err) {
			lost = errors.Join(lost, fmt.Errorf("the acknowledged statement %s is news to it (%v)", kindOf(raw, network), err))
		}
	}
	return has, lost
}

// kindOf is a word for a statement.
func kindOf(raw []byte, network stmt.NetworkID) string {
	st, err := stmt.Verify(raw, network)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %.8s", st.Kind, st.ID)
}
