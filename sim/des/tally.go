package des

import "github.com/formthefog/formation/sim/chance"

// tally counts by receiver: a table that is looked into at every message, and so is one
// piece of memory. The zero value has counted nothing.
type tally struct {
	slots []counted // a power of two of them, at most half of them in use
	used  int
}

type counted struct {
	of int32
	n  uint32 // 0: the slot is free
}

// next counts one more of i, and says how many there are then.
func (t *tally) next(i int32) uint32 {
	if 2*t.used >= len(t.slots) {
		t.grow()
	}
	c := t.slot(i)
	if c.n == 0 {
		c.of = i
		t.used++
	}
	c.n++
	return c.n
}

func (t *tally) slot(i int32) *counted {
	mask := uint64(len(t.slots) - 1)
	for at := chance.Mix(0, uint64(uint32(i))); ; at++ {
		if c := &t.slots[at&mask]; c.n == 0 || c.of == i {
			return c
		}
	}
}

func (t *tally) grow() {
	old := t.slots
	t.slots = make([]counted, max(16, 2*len(old)))
	for _, c := range old {
		if c.n > 0 {
			*t.slot(c.of) = c
		}
	}
}
