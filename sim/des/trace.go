package des

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
)

// trace is the hash of everything that happened.
type trace struct {
	h      hash.Hash
	buf    []byte
	events uint64
}

func newTrace() trace { return trace{h: sha256.New(), buf: make([]byte, 0, 1<<14)} }

func (t *trace) event(e *event) {
	t.events++
	t.buf = binary.LittleEndian.AppendUint64(t.buf, uint64(e.at))
	t.buf = binary.LittleEndian.AppendUint64(t.buf, uint64(e.kind)<<56|uint64(uint32(e.node))<<24^uint64(uint32(e.from)))
	t.buf = binary.LittleEndian.AppendUint64(t.buf, uint64(e.a))
	t.buf = binary.LittleEndian.AppendUint64(t.buf, uint64(e.b))
	t.spill()
}

// note adds what an event led to.
func (t *trace) note(what []byte) {
	t.buf = append(t.buf, what...)
	t.spill()
}

func (t *trace) spill() {
	if len(t.buf) > cap(t.buf)-256 {
		t.h.Write(t.buf)
		t.buf = t.buf[:0]
	}
}

// sum is the hash so far, in hexadecimal.
func (t *trace) sum() string {
	t.h.Write(t.buf)
	t.buf = t.buf[:0]
	return hex.EncodeToString(t.h.Sum(nil)[:16])
}
