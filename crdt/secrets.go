package crdt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt/stmt"
)

// Limits on the secrets of one instance.
const (
	// AwaitsSecrets begins the reason of a claim that cannot start for want of the
	// instance's secrets.
	AwaitsSecrets = "waits for its secrets"
	// MaxSecrets is how many secrets of an instance count, the first by name.
	MaxSecrets = 64
	// MaxSecretName is the longest name of a secret in bytes.
	MaxSecretName = 63
	// MaxSecretValue is the largest value of a secret in bytes (CONTRACT, Limits).
	MaxSecretValue = 4 << 10
	// MaxRecipients is how many nodes a secret is encrypted to, beside its owner.
	MaxRecipients = 8
	// maxSecretNames is how many names are held, removed ones included: the first
	// by name.
	maxSecretNames = 2 * MaxSecrets
	// maxOwnerSecrets is how many names of all instances of one owner are held: the
	// first by instance and name. With the size of a statement it bounds what an
	// owner makes others keep to 8 MiB.
	maxOwnerSecrets = 1024
	maxSecretBox    = 6 << 10
)

// Secret is one secret of an instance as its owner published it: everybody sees
// that it is there, the recipients and the owner can read it.
type Secret struct {
	Name string // see SecretName
	Env  bool   // the entrypoint gets it as a variable too
	// Sum tells whether a value is the one the owner meant (package seal).
	Sum [32]byte
	// Box is the encrypted value. It is shared: do not modify it.
	Box []byte
	// To are the nodes it is encrypted to, ascending; not the owner.
	To []stmt.Key
	// SetAt is when the owner signed it, in Unix seconds, by the owner's clock.
	SetAt int64
}

// SecretName says whether s can name a secret: 1 to MaxSecretName characters of
// [A-Za-z0-9_.-], the first not one of ".-".
func SecretName(s string) bool {
	if s == "" || len(s) > MaxSecretName || s[0] == '.' || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("_.-", rune(c)) {
			return false
		}
	}
	return true
}

// secretBody is the body of a secret statement: a register that the owner of the
// instance writes. Gone makes it a tombstone.
type secretBody struct {
	Device  stmt.Key   `cbor:"dev"`
	Counter uint64     `cbor:"ctr"`
	Name    string     `cbor:"name"`
	Box     []byte     `cbor:"box,omitempty"`
	Sum     stmt.ID    `cbor:"sum,omitzero"`
	To      []stmt.Key `cbor:"to,omitempty"`
	Env     bool       `cbor:"env,omitempty"`
	Gone    bool       `cbor:"gone,omitempty"`
}

// secretReg is a held secret statement.
type secretReg struct {
	rec
	gone   bool
	secret Secret
}

func decodeSecret(st *stmt.Statement) (*secretBody, error) {
	var b secretBody
	if err := stmt.Unmarshal(st.Body, &b); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return &b, b.check()
}

func (b *secretBody) check() error {
	switch {
	case !SecretName(b.Name):
		return fmt.Errorf("%w: secret name %.80q", ErrInvalid, b.Name)
	case b.Gone && (len(b.Box) > 0 || b.Sum != stmt.ID{} || len(b.To) > 0 || b.Env):
		return fmt.Errorf("%w: secret %s is removed and has a value", ErrInvalid, b.Name)
	case !b.Gone && (len(b.Box) == 0 || len(b.Box) > maxSecretBox || b.Sum == stmt.ID{}):
		return fmt.Errorf("%w: secret %s with a box of %d bytes", ErrInvalid, b.Name, len(b.Box))
	case len(b.To) > MaxRecipients:
		return fmt.Errorf("%w: secret %s for %d nodes", ErrInvalid, b.Name, len(b.To))
	}
	for i, k := range b.To {
		if k.IsZero() || i > 0 && b.To[i-1].Compare(k) >= 0 {
			return fmt.Errorf("%w: recipients of secret %s out of order or repeated", ErrInvalid, b.Name)
		}
	}
	return nil
}

func (b *secretBody) instance(author stmt.Key) DocID { return InstanceID(author, b.Device, b.Counter) }

// precheckSecret refuses what is not newer than what is held.
func (s *State) precheckSecret(st *stmt.Statement) error {
	b, err := decodeSecret(st)
	if err != nil {
		return err
	}
	if old := s.secrets[b.instance(st.Author)][b.Name]; old != nil && !recOf(st).beats(old.rec) {
		return fmt.Errorf("%w: secret %s of %s", ErrStale, b.Name, st.Author)
	}
	return nil
}

// applySecret takes a secret of an instance whose document is held, which bounds
// how many there can be; others wait for that.
func (s *State) applySecret(st *stmt.Statement) (bool, error) {
	if err := s.authorise(st.Author, st.Kind); err != nil {
		return false, err
	}
	b, err := decodeSecret(st)
	if err != nil {
		return false, err
	}
	id := b.instance(st.Author)
	if o := s.owners[st.Author]; o != nil && o.dead[id] {
		return false, fmt.Errorf("%w: instance %s is deleted", ErrStale, id)
	}
	if s.docs.get(id) == nil {
		s.pending.add(waitDoc(id), st, false)
		return false, fmt.Errorf("%w: secret %s of %s", ErrPending, b.Name, id)
	}
	r := recOf(st)
	if old := s.secrets[id][b.Name]; old != nil {
		if !r.beats(old.rec) {
			return false, fmt.Errorf("%w: secret %s of %s", ErrStale, b.Name, id)
		}
		s.ids.drop(old.id)
	} else if err := s.makeSecretRoom(st.Author, id, b.Name); err != nil {
		return false, err
	}
	s.ownSecrets(id)[b.Name] = &secretReg{rec: r, gone: b.Gone, secret: Secret{
		Name: b.Name, Env: b.Env, Sum: b.Sum, Box: b.Box, To: b.To, SetAt: st.Time,
	}}
	s.dirtyInst[id] = struct{}{}
	return true, nil
}

// makeSecretRoom enforces the bounds on names: the first ones are held, whichever
// came first, so that everybody holds the same. A name that is out stays out, as
// what comes puts only more names before it.
func (s *State) makeSecretRoom(owner stmt.Key, id DocID, name string) error {
	if held := s.secrets[id]; len(held) >= maxSecretNames {
		last := lastSecret(held)
		if name > last {
			return fmt.Errorf("%w: %d names of secrets of %s", ErrQuota, maxSecretNames, id)
		}
		s.dropSecret(id, last)
		return nil
	}
	total, highest := 0, DocID{}
	for d := range s.docsOf[owner] { // any order: a sum and the highest
		if n := len(s.secrets[d]); n > 0 {
			total += n
			if compareDocs(d, highest) > 0 {
				highest = d
			}
		}
	}
	if total < maxOwnerSecrets {
		return nil
	}
	last := lastSecret(s.secrets[highest])
	if c := compareDocs(id, highest); c > 0 || c == 0 && name > last {
		return fmt.Errorf("%w: %d names of secrets of %s", ErrQuota, maxOwnerSecrets, owner)
	}
	s.dropSecret(highest, last)
	return nil
}

func lastSecret(held map[string]*secretReg) string {
	last := ""
	for n := range held { // any order: the highest
		last = max(last, n)
	}
	return last
}

func (s *State) dropSecret(id DocID, name string) {
	s.ids.drop(s.secrets[id][name].id)
	held := s.ownSecrets(id)
	if delete(held, name); len(held) == 0 {
		delete(s.secrets, id)
	}
	s.dirtyInst[id] = struct{}{}
}

// dropSecrets forgets an instance's secrets.
func (s *State) dropSecrets(id DocID) {
	for _, r := range s.secrets[id] { // any order: all go
		s.ids.drop(r.id)
	}
	delete(s.secrets, id)
}

// heldSecrets are the statements about an instance's secrets, by name.
func (s *State) heldSecrets(id DocID) []*secretReg {
	out := make([]*secretReg, 0, len(s.secrets[id]))
	for _, r := range s.secrets[id] { // any order: sorted below
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *secretReg) int { return strings.Compare(a.secret.Name, b.secret.Name) })
	return out
}

// secretsOf are the secrets of an instance that count, by name.
func (s *State) secretsOf(id DocID) []Secret {
	var out []Secret
	for _, r := range s.heldSecrets(id) {
		if !r.gone && len(out) < MaxSecrets {
			out = append(out, r.secret)
		}
	}
	return out
}

// indexSecrets adds what is held of all instances.
func (s *State) indexSecrets(x *indexer) {
	for id, held := range s.secrets { // any order: the index is sorted
		for name, r := range held { // any order: the index is sorted
			if !x.keeps(r.rec, rankSecret) {
				x.add(subjectOf(stmt.KindSecret, id[:], []byte(name)), classRegister, rankSecret, r.rec)
			}
		}
	}
}

// Secrets returns the secrets of the live instance id, by name.
func (v *View) Secrets(id string) []Secret {
	if iv, ok := v.insts.get(id); ok {
		return iv.secrets
	}
	return nil
}

// Secrets returns the secrets of instance id, as the statements known to this
// Author have them.
func (a *Author) Secrets(id string) []Secret { return a.state.View().Secrets(id) }

// SetSecret publishes a secret of instance id, in the place of one of that name;
// SetAt is ignored. Errors wrap ErrNotFound, ErrInvalid, ErrQuota or
// stmt.ErrTooLarge.
func (a *Author) SetSecret(id string, c Secret) (raws [][]byte, err error) {
	to := slices.Clone(c.To)
	slices.SortFunc(to, stmt.Key.Compare)
	raws, err = a.signSecret(id, secretBody{Name: c.Name, Box: c.Box, Sum: c.Sum, To: slices.Compact(to), Env: c.Env})
	if err != nil {
		return nil, fmt.Errorf("set secret %.80s of %s: %w", c.Name, id, err)
	}
	return raws, nil
}

// RemoveSecret removes a secret. Errors wrap ErrNotFound.
func (a *Author) RemoveSecret(id, name string) (raws [][]byte, err error) {
	doc, err := ParseDocID(id)
	if err == nil && (a.state.secrets[doc][name] == nil || a.state.secrets[doc][name].gone) {
		err = ErrNoSecret
	}
	if err == nil {
		raws, err = a.signSecret(id, secretBody{Name: name, Gone: true})
	}
	if err != nil {
		return nil, fmt.Errorf("remove secret %.80s of %s: %w", name, id, err)
	}
	return raws, nil
}

func (a *Author) signSecret(id string, b secretBody) ([][]byte, error) {
	spec, ok := a.state.View().Instance(id)
	if err := a.asOwner(); err != nil {
		return nil, fmt.Errorf("secret %s of %s: %w", b.Name, id, err)
	}
	if !ok || spec.Owner != a.owner {
		return nil, ErrNotFound
	}
	doc, err := ParseDocID(id)
	if err != nil {
		return nil, err
	}
	d := a.state.docs.get(doc)
	b.Device, b.Counter = d.device, d.counter
	if err := b.check(); err != nil {
		return nil, err
	}
	held := a.state.secrets[doc]
	old := held[b.Name]
	switch live := len(a.state.secretsOf(doc)); {
	case !b.Gone && (old == nil || old.gone) && live >= MaxSecrets:
		return nil, fmt.Errorf("%w: %d secrets", ErrQuota, MaxSecrets)
	case old == nil && len(held) >= maxSecretNames:
		return nil, fmt.Errorf("%w: %d names were used, of removed secrets too", ErrQuota, maxSecretNames)
	}
	body, err := stmt.Marshal(b)
	if err != nil {
		return nil, err
	}
	st := stmt.Statement{Kind: stmt.KindSecret, Network: a.state.network, Seq: 1, Time: a.Now().Unix(), Body: body}
	if old != nil {
		st.Epoch, st.Seq = old.epoch, old.seq+1
	}
	raw, err := stmt.Sign(a.key, st)
	if err != nil {
		return nil, err
	}
	return [][]byte{raw}, a.apply(raw)
}
