package crdt

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt/stmt"
)

// The keys of a spec document. A document is flat so that two devices can set
// different keys at once and both are kept; lists are one value each.
const (
	keyName       = "name"
	keyPack       = "pack"
	keyGeneration = "gen" // written by roots only
	keyReplicas   = "replicas"
	keyPhase      = "phase"
	keyRestart    = "restart"
	keyRecreate   = "recreate"
	keyVCPU       = "vcpu"
	keyMemory     = "mem"
	keyDisk       = "disk"
	keySSH        = "ssh"
	keyExpose     = "expose"
	keyRegion     = "region"
	keyOperators  = "operators"
	keyPartition  = "partition"
	keyVoters     = "voters"
	keyTerm       = "term"
	keyGPU        = "gpu"
	keyCritical   = "critical" // list of keys a node must know to claim
	prefixEnv     = "env/"
	prefixLabel   = "label/"
)

const maxKey = 160 // bytes of one key of a document

// plainKeys is the keys that most documents have, so that reading one needs no copy.
var plainKeys = func() map[string]string {
	m := map[string]string{}
	for _, k := range []string{keyName, keyPack, keyGeneration, keyReplicas, keyPhase, keyRestart, keyRecreate, keyVCPU,
		keyMemory, keyDisk, keySSH, keyExpose, keyRegion, keyOperators, keyPartition, keyVoters, keyTerm, keyGPU, keyCritical} {
		m[k] = k
	}
	return m
}()

func opKey(b []byte) string {
	if k, ok := plainKeys[string(b)]; ok {
		return k
	}
	return string(b)
}

// specBody is the body of a spec statement. Envelope: Epoch is the document's
// epoch (from 1), Seq the actor's number in it (from 1, without gaps), Deps the
// changes it has seen; in a root, the heads it replaces.
type specBody struct {
	Device  stmt.Key // dev
	Counter uint64   // ctr
	Actor   ActorID  // act
	Root    stmt.ID  // root: the epoch's; absent in a root
	Ops     []Op     // ops: a map, in canonical key order, no key twice
	// Delegates are the keys beside the owner's that may change the document in
	// the epoch of this root, ascending; only in a root, and so signed by the owner.
	Delegates []stmt.Key // delegates
	// Owner is whose instance a delegate changes; absent in what the owner signs.
	Owner stmt.Key // own
}

func (b *specBody) isRoot() bool { return b.Root == stmt.ID{} }

func (b *specBody) instance(author stmt.Key) DocID {
	return InstanceID(ownerOf(author, b.Owner), b.Device, b.Counter)
}

// ownerOf is whose statement one by author is that names own.
func ownerOf(author, own stmt.Key) stmt.Key {
	if own.IsZero() {
		return author
	}
	return own
}

// OwnerOf returns whose desired state an owner, spec or secret statement is about:
// its author's, or that of the owner whom a delegate names.
func OwnerOf(st *stmt.Statement) stmt.Key {
	if st.Kind != stmt.KindSpec {
		return st.Author
	}
	var b specBody
	if b.readHead(st.Body) != nil {
		return st.Author // refused for that later
	}
	return ownerOf(st.Author, b.Owner)
}

func (b *specBody) check(st *stmt.Statement) error {
	switch {
	case st.Epoch < 1 || st.Seq < 1:
		return fmt.Errorf("%w: epoch %d, seq %d", ErrInvalid, st.Epoch, st.Seq)
	case b.isRoot() && st.Seq != 1:
		return fmt.Errorf("%w: root with seq %d", ErrInvalid, st.Seq)
	case b.isRoot() && !b.Owner.IsZero():
		return fmt.Errorf("%w: root by a delegate", ErrInvalid)
	case b.Owner == st.Author:
		return fmt.Errorf("%w: the owner is its own delegate", ErrInvalid)
	case !b.isRoot() && len(st.Deps) == 0:
		return fmt.Errorf("%w: change without dependencies", ErrInvalid)
	case !b.isRoot() && len(b.Delegates) > 0:
		return fmt.Errorf("%w: delegates in a change", ErrInvalid)
	case len(b.Ops) == 0 || len(b.Ops) > MaxOps:
		return fmt.Errorf("%w: %d ops", ErrInvalid, len(b.Ops))
	case !b.Owner.IsZero() && changesContract(b.Ops):
		return fmt.Errorf("%w: a delegate's change of the partition contract", ErrInvalid)
	}
	return checkDelegates(st.Author, b.Delegates)
}

// changesContract says whether ops change who decides where an instance may run,
// which its owner alone does: of two who name voters each could let one run.
func changesContract(ops []Op) bool {
	return slices.ContainsFunc(ops, func(op Op) bool {
		return op.Key == keyPartition || op.Key == keyVoters || op.Key == keyTerm
	})
}

func checkDelegates(owner stmt.Key, keys []stmt.Key) error {
	if len(keys) > MaxDelegates {
		return fmt.Errorf("%w: %d delegates, at most %d", ErrInvalid, len(keys), MaxDelegates)
	}
	for i, k := range keys {
		if k.IsZero() || k == owner || i > 0 && keys[i-1].Compare(k) >= 0 {
			return fmt.Errorf("%w: delegates out of order, repeated, or the owner", ErrInvalid)
		}
	}
	return nil
}

// precheckSpec looks at which instance and epoch a spec statement is about; what
// it says of it is looked at when its signature was.
func (s *State) precheckSpec(st *stmt.Statement, read *reading) error {
	b := &specBody{}
	if read != nil && read.spec != nil {
		b = read.spec
	} else if err := b.readHead(st.Body); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	d := s.docs.get(b.instance(st.Author))
	switch {
	case d == nil:
	case st.Epoch < d.epoch && s.tellOmitted && b.Root != (stmt.ID{}) && d.prior.missed(st.ID, st.Epoch):
		return d.allows(st.Author) // its author may want to know: see late
	case st.Epoch < d.epoch:
		return fmt.Errorf("%w: epoch %d of %s", ErrStale, st.Epoch, d.id)
	case st.Epoch == d.epoch && b.Root == d.root.id:
		return d.allows(st.Author)
	}
	return nil
}

// readHead reads what says which document and epoch a spec statement is about.
func (b *specBody) readHead(body []byte) error { return stmt.Fields(body, b.readField) }

func (b *specBody) readField(key, value []byte) (err error) {
	switch string(key) {
	case "dev":
		err = b.Device.UnmarshalCBOR(value)
	case "ctr":
		b.Counter, err = stmt.Uint(value)
	case "root":
		err = b.Root.UnmarshalCBOR(value)
	case "own":
		err = b.Owner.UnmarshalCBOR(value)
	}
	return err
}

// decodeSpec checks everything about a spec statement that needs no state.
func decodeSpec(st *stmt.Statement) (*specBody, Change, error) {
	var b specBody
	err := stmt.Fields(st.Body, func(key, value []byte) (err error) {
		switch string(key) {
		case "act":
			return b.Actor.UnmarshalCBOR(value)
		case "delegates":
			b.Delegates, err = readKeys(value)
		case "ops":
			b.Ops, err = readOps(value)
		default:
			err = b.readField(key, value)
		}
		return err
	})
	if err != nil {
		return nil, Change{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := b.check(st); err != nil {
		return nil, Change{}, err
	}
	return &b, b.change(st), nil
}

func (b *specBody) change(st *stmt.Statement) Change {
	c := Change{ID: st.ID, Actor: b.Actor, Seq: st.Seq, Time: st.Time, Ops: b.Ops}
	if !b.isRoot() {
		c.Deps = st.Deps
	}
	return c
}

// readOps reads a canonical map, whose order is that of ops.
func readOps(b []byte) (ops []Op, err error) {
	ops = make([]Op, 0, 16) // of which most have fewer
	err = stmt.Fields(b, func(key, value []byte) error {
		if len(key) == 0 || len(key) > maxKey || len(value) > MaxValue {
			return fmt.Errorf("op %.32q with %d bytes", key, len(value))
		}
		ops = append(ops, Op{Key: opKey(key), Value: value})
		return nil
	})
	return ops, err
}

// setValues fills s from the keys of a document. A known key with a value of a
// wrong type or out of bounds reads as absent and is kept in Unknown: one bad key
// of an owner's newer tool must not hide the instance.
func (s *Spec) setValues(vals []Op) {
	for _, op := range vals {
		s.setValue(op.Key, op.Value)
	}
	if s.Phase == "" {
		s.Phase = PhaseRunning
	}
	s.setCritical()
}

func (s *Spec) setValue(k string, raw []byte) {
	if s.readValue(k, raw) {
		return
	}
	if s.Unknown == nil {
		s.Unknown = map[string][]byte{}
	}
	s.Unknown[k] = raw
}

// readValue says whether the key is known and the value good.
func (s *Spec) readValue(k string, raw []byte) bool {
	switch k {
	case keyName:
		return into(&s.Name, raw, stmt.Text, isLabel)
	case keyPack:
		return into(&s.Pack, raw, stmt.Text, goodPack)
	case keyGeneration:
		return into(&s.Generation, raw, stmt.Uint, goodCounter)
	case keyReplicas:
		return into(&s.Replicas, raw, readInt, goodReplicas)
	case keyPhase:
		return into((*string)(&s.Phase), raw, stmt.Text, goodWord)
	case keyRestart:
		return into(&s.Restart, raw, stmt.Uint, goodCounter)
	case keyRecreate:
		return into(&s.Recreate, raw, stmt.Uint, goodCounter)
	case keyVCPU:
		return into(&s.VCPU, raw, readInt, goodVCPU)
	case keyMemory:
		return into(&s.MemoryBytes, raw, stmt.Uint, goodMemory)
	case keyDisk:
		return into(&s.DiskBytes, raw, stmt.Uint, goodDisk)
	case keySSH:
		return into(&s.SSHKeys, raw, readTexts, anyValue)
	case keyExpose:
		return into(&s.Expose, raw, readTexts, anyValue)
	case keyRegion:
		return into(&s.Region, raw, stmt.Text, goodWord)
	case keyOperators:
		return into(&s.Operators, raw, readKeys, anyValue)
	case keyPartition:
		return into(&s.Partition, raw, stmt.Text, goodWord)
	case keyVoters:
		return into(&s.Voters, raw, readKeys, goodVoters)
	case keyTerm:
		return into(&s.Term, raw, stmt.Uint, goodCounter)
	case keyGPU:
		return into(&s.GPU, raw, stmt.Text, goodWord)
	}
	if name, ok := strings.CutPrefix(k, prefixEnv); ok {
		return setText(&s.Env, name, raw, anyPair)
	}
	if name, ok := strings.CutPrefix(k, prefixLabel); ok {
		return setText(&s.Labels, name, raw, goodLabel)
	}
	return false
}

func (s *Spec) setCritical() {
	raw, ok := s.Unknown[keyCritical]
	if !ok {
		return
	}
	var keys []string
	if stmt.Unmarshal(raw, &keys) != nil {
		s.Critical = []string{keyCritical} // unreadable: better not to claim
		return
	}
	for _, k := range keys {
		if _, unknown := s.Unknown[k]; unknown && k != keyCritical {
			s.Critical = append(s.Critical, k)
		}
	}
}

func setText(m *map[string]string, key string, raw []byte, good func(k, v string) bool) bool {
	v, err := stmt.Text(raw)
	if err != nil || !good(key, v) {
		return false
	}
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = v
	return true
}

// clone returns a copy that shares nothing which a caller may modify.
func (s *Spec) clone() Spec {
	c := *s
	c.Env, c.Labels, c.Unknown = maps.Clone(s.Env), maps.Clone(s.Labels), maps.Clone(s.Unknown)
	c.Delegates = slices.Clone(s.Delegates)
	c.SSHKeys, c.Expose, c.Operators = slices.Clone(s.SSHKeys), slices.Clone(s.Expose), slices.Clone(s.Operators)
	c.Voters = slices.Clone(s.Voters)
	return c
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
