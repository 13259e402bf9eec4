package reconcile

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
)

// Times of asking other nodes for secrets.
const (
	askTimeout = 10 * time.Second // one node's time to answer
	askAgain   = time.Second      // after the first failure; doubles
	askSeldom  = 30 * time.Second // to this
	asking     = 4                // instances asked for at once
	// askedEnough is after how many rounds in which nobody had them the owner is
	// asked to help.
	askedEnough = 2
)

// VaultConfig of a Vault. All fields but the last two are required.
type VaultConfig struct {
	Key     ed25519.PrivateKey // this node's
	Streams Streams
	View    func() *crdt.View
	World   func() plan.World // of the view as it is now
	Now     func() time.Duration
	Logger  *slog.Logger
}

// Vault is the secrets of the instances that this node has claims on. It opens
// what is encrypted to this node, asks nodes that run the instance for the rest,
// and answers those that have come to keep a slot of it. Values are in memory
// only. Its methods are safe for concurrent use.
type Vault struct {
	cfg     VaultConfig
	self    stmt.Key
	changed chan struct{}
	wake    chan struct{}
	serve   chan struct{} // one token per peer that is answered
	rates   *askRates

	mu    sync.Mutex
	held  map[string]map[string]seal.Frame // by instance and name
	known map[string][]crdt.Secret         // what the state says of them, by instance
	bad   map[string]map[string][]byte     // boxes that did not open, by instance and name
	quest map[string]*quest                // by instance: what is missing
}

// quest is the search for secrets of one instance that are not known here.
type quest struct {
	names    []string
	from     []stmt.Key
	next     time.Duration // when to ask again
	rounds   int           // failed ones
	underWay bool
}

// NewVault makes a Vault; Run starts it.
func NewVault(cfg VaultConfig) *Vault {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = boottime.Now
	}
	return &Vault{
		cfg: cfg, self: stmt.KeyOf(cfg.Key), changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		serve: make(chan struct{}, servingSecrets), rates: newAskRates(),
		held: map[string]map[string]seal.Frame{}, known: map[string][]crdt.Secret{},
		bad: map[string]map[string][]byte{}, quest: map[string]*quest{},
	}
}

// Changed has an element after what Want or Secrets say may have changed.
func (v *Vault) Changed() <-chan struct{} { return v.changed }

// Want sets the instances whose secrets this node is to have, and forgets all
// others. It says, by instance, what is missing and why.
func (v *Vault) Want(view *crdt.View, w plan.World, instances []string) map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	missing := map[string]string{}
	for id := range v.known {
		if !slices.Contains(instances, id) {
			delete(v.known, id)
			delete(v.held, id)
			delete(v.bad, id)
			delete(v.quest, id)
		}
	}
	for _, id := range instances {
		v.known[id] = view.Secrets(id)
		names := v.open(id)
		if len(names) == 0 {
			delete(v.quest, id)
			continue
		}
		q := v.seek(id, names, sources(view, w, id, v.self))
		spec, _ := view.Instance(id)
		missing[id] = q.reason(spec.Name, v.hasSome(id))
	}
	return missing
}

// open decrypts what is new of an instance's secrets, forgets what is removed,
// and returns the names of those whose value as it is now is not here. Under mu.
func (v *Vault) open(id string) (missing []string) {
	held := v.held[id]
	if held == nil {
		held = map[string]seal.Frame{}
		v.held[id], v.bad[id] = held, map[string][]byte{}
	}
	names := map[string]bool{}
	for _, c := range v.known[id] {
		names[c.Name] = true
		if f, ok := held[c.Name]; ok && f.Sum() == c.Sum {
			continue
		}
		if _, mine := slices.BinarySearchFunc(c.To, v.self, stmt.Key.Compare); mine && !bytes.Equal(v.bad[id][c.Name], c.Box) {
			f, err := seal.Open(v.cfg.Key, c.Box, c.Sum)
			if err == nil {
				held[c.Name] = f
				continue
			}
			v.bad[id][c.Name] = c.Box // tried, and told, once
			v.cfg.Logger.Warn("a secret that is for this node does not open", "instance", id, "secret", c.Name, "err", err)
		}
		missing = append(missing, c.Name)
	}
	for name := range held {
		if !names[name] {
			delete(held, name)
		}
	}
	for name := range v.bad[id] {
		if !names[name] {
			delete(v.bad[id], name)
		}
	}
	return missing
}

// hasSome says whether a value, perhaps an older one, is here of every secret.
// Under mu.
func (v *Vault) hasSome(id string) bool {
	for _, c := range v.known[id] {
		if v.held[id][c.Name] == nil {
			return false
		}
	}
	return true
}

// Secrets are what the VMs of an instance get, by name; older values where new
// ones have not come. nil: not known. await: there are some.
func (v *Vault) Secrets(id string) (out []guest.Secret, await bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	known, wanted := v.known[id]
	if !wanted || !v.hasSome(id) {
		return nil, len(known) > 0
	}
	out = []guest.Secret{}
	for _, c := range known {
		out = append(out, guest.Secret{Name: c.Name, Value: v.held[id][c.Name].Value(), Env: c.Env})
	}
	return out, len(known) > 0
}

// sources are the other nodes that may have an instance's secrets, those that
// serve it first.
func sources(view *crdt.View, w plan.World, id string, self stmt.Key) []stmt.Key {
	claims := slices.DeleteFunc(slices.Clone(view.Claims(id)), func(c crdt.Claim) bool {
		_, dead := w.Dead[c.Node]
		return dead || c.Node == self || c.Phase == crdt.ClaimFailed
	})
	order := func(c crdt.Claim) int {
		switch {
		case c.Ready:
			return 0
		case strings.HasPrefix(c.Reason, crdt.AwaitsSecrets):
			return 2
		}
		return 1
	}
	slices.SortStableFunc(claims, func(a, b crdt.Claim) int { return cmp.Compare(order(a), order(b)) })
	var out []stmt.Key
	for _, c := range claims {
		if !slices.Contains(out, c.Node) {
			out = append(out, c.Node)
		}
	}
	return out
}

// seek goes on with the search for secrets; at once when what is missing, or who
// may have it, has changed. Under mu.
func (v *Vault) seek(id string, names []string, from []stmt.Key) *quest {
	q := v.quest[id]
	if q == nil {
		q = &quest{}
		v.quest[id] = q
	}
	if !slices.Equal(q.names, names) {
		q.rounds = 0
	} else if sameKeys(q.from, from) {
		q.from = from // perhaps in another order
		return q
	}
	q.names, q.from, q.next = names, from, v.cfg.Now()
	poke(v.wake)
	return q
}

func sameKeys(a, b []stmt.Key) bool {
	return slices.Equal(slices.SortedFunc(slices.Values(a), stmt.Key.Compare), slices.SortedFunc(slices.Values(b), stmt.Key.Compare))
}

// reason is what a claim says of what is missing.
func (q *quest) reason(instance string, old bool) string {
	what := crdt.AwaitsSecrets
	if old {
		what = "has older values of secrets"
	}
	if len(q.from) > 0 && q.rounds < askedEnough {
		return what + ": asks other replicas for them"
	}
	return fmt.Sprintf("%s: run form secret sync %s", what, instance)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run asks and answers until ctx ends, and then returns nil.
func (v *Vault) Run(ctx context.Context) error {
	v.cfg.Streams.Handle(ProtoSecret, v.answer)
	var asks sync.WaitGroup
	defer asks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		var again <-chan time.Time
		if wait := v.start(ctx, &asks); wait > 0 {
			again = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-v.wake:
		case <-again:
		}
	}
}

// start asks for what is due, and says how long until more is; 0: nothing is
// known to become due.
func (v *Vault) start(ctx context.Context, asks *sync.WaitGroup) (wait time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now, busy := v.cfg.Now(), 0
	for _, q := range v.quest {
		if q.underWay {
			busy++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(v.quest)) {
		q := v.quest[id]
		switch {
		case q.underWay || len(q.from) == 0:
		case q.next > now:
			if left := q.next - now; wait == 0 || left < wait {
				wait = left
			}
		case busy < asking: // else whoever ends makes room
			busy++
			q.underWay = true
			names, from := q.names, q.from
			asks.Go(func() { v.ask(ctx, id, q, names, from) })
		}
	}
	return wait
}

// ask asks the nodes that may have them for the secrets of a quest.
func (v *Vault) ask(ctx context.Context, id string, q *quest, left []string, from []stmt.Key) {
	var errs []error
	for _, k := range from {
		if len(left) == 0 || ctx.Err() != nil {
			break
		}
		frames, err := v.askNode(ctx, k, id, left)
		left = v.take(id, frames, left)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k, err))
		}
	}
	if len(left) > 0 && ctx.Err() == nil {
		v.cfg.Logger.Info("nobody has these secrets for this node", "instance", id, "secrets", left, "err", errors.Join(errs...))
	}
	v.mu.Lock()
	q.underWay = false
	q.rounds++
	q.next = v.cfg.Now() + min(askAgain<<min(q.rounds-1, 8), askSeldom)
	v.mu.Unlock()
	poke(v.wake)
	poke(v.changed)
}

// take keeps the frames that are what the owner signed, and returns the names
// that are missing still.
func (v *Vault) take(id string, frames map[string][]byte, names []string) (left []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.known[id] {
		b, came := frames[c.Name]
		if !came || v.held[id] == nil {
			continue
		}
		f, err := seal.Check(b, c.Sum)
		if err != nil {
			v.cfg.Logger.Warn("a secret of another node is not what its owner signed", "instance", id, "secret", c.Name)
			continue
		}
		v.held[id][c.Name] = f
	}
	for _, n := range names {
		i := slices.IndexFunc(v.known[id], func(c crdt.Secret) bool { return c.Name == n })
		if i < 0 {
			continue // it was removed meanwhile
		}
		if f := v.held[id][n]; f == nil || f.Sum() != v.known[id][i].Sum {
			left = append(left, n)
		}
	}
	return left
}
