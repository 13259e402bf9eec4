package crdt

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt/stmt"
)

// encode returns the canonical bytes of b.
func (b *specBody) encode() ([]byte, error) {
	size, n := 256+len(b.Delegates)*34, 4
	for _, op := range b.Ops {
		size += 3 + len(op.Key) + len(op.Value)
	}
	for _, has := range []bool{!b.Owner.IsZero(), !b.isRoot(), len(b.Delegates) > 0} {
		if has {
			n++
		}
	}
	out := stmt.AppendMap(make([]byte, 0, size), n)
	out = stmt.AppendBytes(stmt.AppendText(out, "act"), b.Actor[:])
	out = stmt.AppendUint(stmt.AppendText(out, "ctr"), b.Counter)
	out = stmt.AppendBytes(stmt.AppendText(out, "dev"), b.Device[:])
	out = stmt.AppendMap(stmt.AppendText(out, "ops"), len(b.Ops))
	for _, op := range b.Ops {
		out = append(stmt.AppendText(out, op.Key), op.Value...)
	}
	if !b.Owner.IsZero() {
		out = stmt.AppendBytes(stmt.AppendText(out, "own"), b.Owner[:])
	}
	if !b.isRoot() {
		out = stmt.AppendBytes(stmt.AppendText(out, "root"), b.Root[:])
	}
	if len(b.Delegates) > 0 {
		out = stmt.AppendArray(stmt.AppendText(out, "delegates"), len(b.Delegates))
		for _, k := range b.Delegates {
			out = stmt.AppendBytes(out, k[:])
		}
	}
	return out, stmt.CheckCanonical(out)
}

// opsFrom returns the ops that turn old into s, in canonical order; the
// generation is left out. Zero values are absent.
func (s *Spec) opsFrom(old *Spec) ([]Op, error) {
	var d differ
	d.text(keyName, old.Name, s.Name)
	d.text(keyPack, old.Pack, s.Pack)
	d.uint(keyReplicas, uint64(old.Replicas), uint64(s.Replicas))
	d.text(keyPhase, old.phaseValue(), s.phaseValue())
	d.uint(keyRestart, old.Restart, s.Restart)
	d.uint(keyRecreate, old.Recreate, s.Recreate)
	d.uint(keyVCPU, uint64(old.VCPU), uint64(s.VCPU))
	d.uint(keyMemory, old.MemoryBytes, s.MemoryBytes)
	d.uint(keyDisk, old.DiskBytes, s.DiskBytes)
	differList(&d, keySSH, old.SSHKeys, s.SSHKeys)
	differList(&d, keyExpose, old.Expose, s.Expose)
	d.text(keyRegion, old.Region, s.Region)
	differList(&d, keyOperators, old.Operators, s.Operators)
	d.text(keyPartition, old.Partition, s.Partition)
	differList(&d, keyVoters, old.Voters, s.Voters)
	d.uint(keyTerm, old.Term, s.Term)
	d.text(keyGPU, old.GPU, s.GPU)
	d.texts(prefixEnv, old.Env, s.Env)
	d.texts(prefixLabel, old.Labels, s.Labels)
	for k, v := range s.Unknown { // any order: sorted at the end
		if was, had := old.Unknown[k]; !had || !bytes.Equal(was, v) {
			d.kept(k, v)
		}
	}
	for k := range old.Unknown { // any order: sorted at the end
		if _, has := s.Unknown[k]; !has {
			d.kept(k, nil)
		}
	}
	sortOps(d.ops)
	return d.ops, d.err
}

// phaseValue is the phase unless it is the one that is meant where there is none.
func (s *Spec) phaseValue() string {
	if s.Phase == PhaseRunning {
		return ""
	}
	return string(s.Phase)
}

// differ collects ops.
type differ struct {
	ops []Op
	err error
}

// set adds an op; no value removes the key.
func (d *differ) set(key string, v []byte) {
	if d.err != nil {
		return
	}
	if v == nil {
		v = []byte{0xf6}
	}
	if err := stmt.CheckCanonical(v); err != nil {
		d.err = fmt.Errorf("%w: %.32s: %w", ErrInvalid, key, err)
	} else if len(key) > maxKey || len(v) > MaxValue {
		d.err = fmt.Errorf("%w: %.32q is too large (%d bytes, at most %d)", ErrInvalid, key, len(v), MaxValue)
	}
	d.ops = append(d.ops, Op{Key: key, Value: v})
}

// kept adds an op for what is kept of a value that this version cannot read. What
// a field says of the key goes before it, and both before that either is gone.
func (d *differ) kept(key string, v []byte) {
	i := slices.IndexFunc(d.ops, func(op Op) bool { return op.Key == key })
	switch {
	case i >= 0 && (v == nil || !isNull(d.ops[i].Value)):
		return
	case i >= 0:
		d.ops = slices.Delete(d.ops, i, i+1)
	}
	d.set(key, v)
}

func (d *differ) uint(key string, old, now uint64) {
	switch {
	case old == now:
	case now == 0:
		d.set(key, nil)
	default:
		d.set(key, stmt.AppendUint(nil, now))
	}
}

func (d *differ) text(key, old, now string) {
	switch {
	case old == now:
	case now == "":
		d.set(key, nil)
	default:
		d.set(key, stmt.AppendText(nil, now))
	}
}

// texts takes pairs of texts, each a key of its own and present when it is empty.
func (d *differ) texts(prefix string, old, now map[string]string) {
	for k, v := range now { // any order: sorted at the end
		if was, had := old[k]; !had || was != v {
			d.set(prefix+k, stmt.AppendText(nil, v))
		}
	}
	for k := range old { // any order: sorted at the end
		if _, has := now[k]; !has {
			d.set(prefix+k, nil)
		}
	}
}

func differList[T comparable](d *differ, key string, old, now []T) {
	switch {
	case slices.Equal(old, now):
	case len(now) == 0:
		d.set(key, nil)
	default:
		b, err := stmt.Marshal(now)
		if d.err == nil && err != nil {
			d.err = fmt.Errorf("%w: %s: %w", ErrInvalid, key, err)
		}
		d.set(key, b)
	}
}

// compareOpKeys is the canonical order of keys: the shorter first.
func compareOpKeys(a, b string) int {
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

func sortOps(ops []Op) {
	slices.SortFunc(ops, func(a, b Op) int { return compareOpKeys(a.Key, b.Key) })
}
