package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"

	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store/whole"
)

// acceptance is whose instances may run here: the --accept policy, and who this
// node's operator is. An owner whose statements came through the unix socket is
// the operator: opening it proves the uid.
type acceptance struct {
	policy config.Accept
	path   string // of the operators that were learnt
	kick   func()

	mu        sync.Mutex
	operators []stmt.Key
}

// maxOperators bounds what is learnt, and what fits the node's register.
const maxOperators = plan.MaxAcceptKeys

func newAcceptance(c config.Config, joined bool, path string) (*acceptance, error) {
	policy, err := config.ParseAccept(c.Accept)
	if err != nil {
		return nil, usage(err)
	}
	if policy.IsZero() {
		policy.Operator, policy.Members = true, joined
	}
	a := &acceptance{policy: policy, path: path, kick: func() {}}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("operators: %w", err)
	}
	if err == nil {
		if err := json.Unmarshal(b, &a.operators); err != nil {
			return nil, fmt.Errorf("operators: %s: %w", path, err)
		}
	}
	for _, word := range c.Operator {
		k, err := stmt.ParseKey(word)
		if err != nil {
			return nil, usage(err)
		}
		if !slices.Contains(a.operators, k) {
			a.operators = append(a.operators, k)
		}
	}
	return a, nil
}

// learn adds an operator and keeps it.
func (a *acceptance) learn(k stmt.Key) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.operators, k) {
		return nil
	}
	if len(a.operators) >= maxOperators {
		return fmt.Errorf("operators: there are %d already, the most that are kept in %s", maxOperators, a.path)
	}
	next := append(slices.Clone(a.operators), k)
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("operators: %w", err)
	}
	if err := whole.Write(a.path, append(b, '\n'), 0o600); err != nil {
		return err
	}
	a.operators = next
	a.kick()
	return nil
}

// accepts says whether owner's instances may run here. That the network admits
// the owner at all is judged elsewhere.
func (a *acceptance) accepts(owner stmt.Key) bool {
	if a.policy.Any || a.policy.Members || slices.Contains(a.policy.Owners, owner) {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.policy.Operator && slices.Contains(a.operators, owner)
}

// operatorsNow are those that are known now.
func (a *acceptance) operatorsNow() []stmt.Key {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.operators)
}

// label tells the other nodes.
func (a *acceptance) label() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	owners := slices.Clone(a.policy.Owners)
	if a.policy.Operator {
		owners = append(owners, a.operators...)
	}
	return plan.AcceptLabelOf(a.policy.Any || a.policy.Members, owners)
}
