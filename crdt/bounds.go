package crdt

import (
	"fmt"
	"math"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bounds of the values of a spec (CONTRACT, Formfile). A value outside of them
// reads as absent on every node, like one of a wrong type, and is kept among the
// unknown ones. It is not a reason to refuse the statement: a replica that did
// could not accept what follows it, and versions that differ in a bound would
// hold different documents for good.
const (
	// MaxVCPU is the largest Spec.VCPU.
	MaxVCPU = 128
	// MaxMemory is the largest Spec.MemoryBytes.
	MaxMemory = 256_000 << 20
	// MaxDisk is the largest Spec.DiskBytes.
	MaxDisk = 65_535 << 30
	// MaxWord is the longest region, partition, GPU, and key or value of a
	// label, in bytes.
	MaxWord = 63
	// maxCounter leaves room to count on, also in JSON.
	maxCounter = 1<<53 - 1
)

func goodPack(s string) bool     { return s == "" || stmt.IsCID(s) }
func goodReplicas(n int) bool    { return n >= 0 && n <= MaxReplicas }
func goodVCPU(n int) bool        { return n >= 0 && n <= MaxVCPU }
func goodMemory(n uint64) bool   { return n <= MaxMemory }
func goodDisk(n uint64) bool     { return n <= MaxDisk }
func goodCounter(n uint64) bool  { return n <= maxCounter }
func goodWord(s string) bool     { return len(s) <= MaxWord }
func goodLabel(k, v string) bool { return k != "" && goodWord(k) && goodWord(v) }
func anyValue[T any](T) bool     { return true }
func goodVoters(v []stmt.Key) bool {
	seen := map[stmt.Key]bool{}
	for _, k := range v {
		seen[k] = true
	}
	return len(v)%2 == 1 && len(v) <= MaxVoters && len(seen) == len(v) && !seen[stmt.Key{}]
}
func anyPair(_, _ string) bool { return true }

// into reads a canonical value into p when it is of p's type and good.
func into[T any](p *T, raw []byte, read func([]byte) (T, error), good func(T) bool) bool {
	v, err := read(raw)
	if err != nil || !good(v) {
		return false
	}
	*p = v
	return true
}

func readInt(raw []byte) (int, error) {
	n, err := stmt.Uint(raw)
	return int(min(n, math.MaxInt)), err
}

func readTexts(raw []byte) (list []string, err error) {
	err = stmt.Elements(raw, func(v []byte) error {
		s, err := stmt.Text(v)
		list = append(list, s)
		return err
	})
	return list, err
}

func readKeys(raw []byte) (list []stmt.Key, err error) {
	err = stmt.Elements(raw, func(v []byte) error {
		list = append(list, stmt.Key{})
		return list[len(list)-1].UnmarshalCBOR(v)
	})
	return list, err
}

// validate refuses what no Author should sign.
func (s *Spec) validate() error {
	switch {
	case !isLabel(s.Name):
		return fmt.Errorf("%w: name %.80q is no DNS label", ErrInvalid, s.Name)
	case !goodPack(s.Pack):
		return fmt.Errorf("%w: pack %.140q is no CID", ErrInvalid, s.Pack)
	case !goodReplicas(s.Replicas):
		return fmt.Errorf("%w: %d replicas (0 to %d)", ErrInvalid, s.Replicas, MaxReplicas)
	case !goodVCPU(s.VCPU):
		return fmt.Errorf("%w: %d vCPUs (at most %d)", ErrInvalid, s.VCPU, MaxVCPU)
	case !goodMemory(s.MemoryBytes):
		return fmt.Errorf("%w: %d bytes of memory (at most %d)", ErrInvalid, s.MemoryBytes, uint64(MaxMemory))
	case !goodDisk(s.DiskBytes):
		return fmt.Errorf("%w: %d bytes of disk (at most %d)", ErrInvalid, s.DiskBytes, uint64(MaxDisk))
	case len(s.Voters) > 0 && !goodVoters(s.Voters):
		return fmt.Errorf("%w: %d voters (an odd number of different nodes, at most %d)", ErrInvalid, len(s.Voters), MaxVoters)
	case len(s.Voters) == 0 && (s.Partition == PartitionStopMinority || s.Partition == PartitionFence):
		return fmt.Errorf("%w: partition contract %s without voters", ErrInvalid, s.Partition)
	case !goodCounter(s.Term):
		return fmt.Errorf("%w: term %d", ErrInvalid, s.Term)
	case !goodCounter(s.Restart) || !goodCounter(s.Recreate):
		return fmt.Errorf("%w: restart %d, recreate %d", ErrInvalid, s.Restart, s.Recreate)
	case !goodWord(s.Region) || !goodWord(s.Partition) || !goodWord(s.GPU):
		return fmt.Errorf("%w: region, partition or GPU of more than %d bytes", ErrInvalid, MaxWord)
	case s.Phase != "" && s.Phase != PhaseRunning && s.Phase != PhaseStopped:
		return fmt.Errorf("%w: phase %q", ErrInvalid, s.Phase)
	}
	for k, v := range s.Labels { // any order: one is enough
		if !goodLabel(k, v) {
			return fmt.Errorf("%w: label %.80q: key or value missing or of more than %d bytes", ErrInvalid, k, MaxWord)
		}
	}
	return nil
}
