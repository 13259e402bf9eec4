package crdt

import (
	"runtime"

	"github.com/formthefog/formation/crdt/stmt"
)

// verifyChunk is how many statements of a log one core takes at a time.
const verifyChunk = 128

// verifier verifies statements on all cores, reads what they say, and hands them
// over in their order, one at a time, in the goroutine of its caller.
type verifier struct {
	net  stmt.NetworkID
	each func(*stmt.Statement, *reading, error)

	chunk [][]byte
	busy  []chan []verified // of the chunks under way, the oldest first
}

type verified struct {
	st   *stmt.Statement
	read *reading
	err  error
}

func newVerifier(net stmt.NetworkID, each func(*stmt.Statement, *reading, error)) *verifier {
	return &verifier{net: net, each: each}
}

// add takes a statement, which must not change afterwards. It returns nil: what is
// wrong with a statement is told to each.
func (v *verifier) add(raw []byte) error {
	if v.chunk = append(v.chunk, raw); len(v.chunk) == verifyChunk {
		v.begin()
		if len(v.busy) > 2*runtime.GOMAXPROCS(0) {
			v.hand()
		}
	}
	return nil
}

// finish hands over all that was added.
func (v *verifier) finish() {
	v.begin()
	for len(v.busy) > 0 {
		v.hand()
	}
}

func (v *verifier) begin() {
	if len(v.chunk) == 0 {
		return
	}
	chunk, done := v.chunk, make(chan []verified, 1)
	go func() {
		out := make([]verified, len(chunk))
		for i, raw := range chunk {
			if out[i].st, out[i].err = stmt.Verify(raw, v.net); out[i].err == nil {
				out[i].read = readAhead(out[i].st)
			}
		}
		done <- out
	}()
	v.chunk, v.busy = nil, append(v.busy, done)
}

// hand hands over the oldest chunk.
func (v *verifier) hand() {
	for _, r := range <-v.busy[0] {
		v.each(r.st, r.read, r.err)
	}
	v.busy = v.busy[1:]
}
