package live

import "math/bits"

// crowd is from how many peers on their order is computed, and not kept.
const crowd = 1024

// turn goes through the numbers below n once, in an order that its keys give: a
// network of Feistel's over the least even number of bits, walked on until it gives a
// number that is below n.
type turn struct {
	n, next int
	keys    [4]uint64
}

func newTurn(n int, draw func() uint64) turn {
	t := turn{n: n}
	for i := range t.keys {
		t.keys[i] = draw()
	}
	return t
}

func (t *turn) take() (i int, ok bool) {
	if t.next >= t.n {
		return 0, false
	}
	half := (bits.Len(uint(t.n-1)) + 1) / 2
	mask := uint64(1)<<half - 1
	x := uint64(t.next)
	t.next++
	for {
		l, r := x>>half, x&mask
		for _, k := range t.keys {
			l, r = r, l^(scatter(r^k)&mask)
		}
		if x = l<<half | r; x < uint64(t.n) {
			return int(x), true
		}
	}
}

// scatter is the finaliser of SplitMix64.
func scatter(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
