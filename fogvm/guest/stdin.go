package guest

import (
	"encoding/binary"
	"io"
	"sync"
)

// stdinWindow is how many bytes of FrameStdin, headers included, a client may
// be ahead of what the command has taken, which FrameTaken tells it. It is less
// than a stream of the control channel holds, so that whatever a command does
// with its input, signals and the client's end still get through to it.
const stdinWindow = 128 << 10

// stdinCost is what a frame of n bytes takes of the window.
func stdinCost(n int) int { return frameHeader + n }

func encodeTaken(n int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(n)) }

// credit is the client's part of the window.
type credit struct {
	mu   sync.Mutex
	left int
	more chan struct{}
}

func newCredit() *credit { return &credit{left: stdinWindow, more: make(chan struct{}, 1)} }

// give adds to the credit, which is never more than the window.
func (c *credit) give(n uint32) {
	c.mu.Lock()
	c.left = int(min(int64(c.left)+int64(n), stdinWindow))
	c.mu.Unlock()
	wake(c.more)
}

// take waits for credit and takes that of a frame of up to MaxFrame bytes, at
// least one; 0 when done comes first. One goroutine takes.
func (c *credit) take(done <-chan struct{}) (size int) {
	for {
		c.mu.Lock()
		size = min(c.left-frameHeader, MaxFrame)
		if size > 0 {
			c.left -= stdinCost(size)
			c.mu.Unlock()
			return size
		}
		c.mu.Unlock()
		select {
		case <-c.more:
		case <-done:
			return 0
		}
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// inbox is the guest's part: input that the command has not taken yet. It holds
// at most stdinWindow.
type inbox struct {
	mu     sync.Mutex
	chunks [][]byte
	cost   int // of chunks and of the one in hand
	ended  bool
	more   chan struct{}
}

func newInbox() *inbox { return &inbox{more: make(chan struct{}, 1)} }

// put keeps p and never waits; false when the client has gone over its window.
func (b *inbox) put(p []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cost+stdinCost(len(p)) > stdinWindow {
		return false
	}
	b.chunks, b.cost = append(b.chunks, p), b.cost+stdinCost(len(p))
	wake(b.more)
	return true
}

// end says that nothing more will be put.
func (b *inbox) end() {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	wake(b.more)
}

// copyTo writes everything put into w until the end, and says what was taken;
// what w refuses is taken too: a command that does not read its input is its own
// business. It returns early when taken fails.
func (b *inbox) copyTo(w io.Writer, taken func(cost int) error) {
	for {
		chunk, ended := b.next()
		switch {
		case chunk != nil:
			_, _ = w.Write(chunk)
			if b.drop(chunk); taken(stdinCost(len(chunk))) != nil {
				return
			}
		case ended:
			return
		default:
			<-b.more
		}
	}
}

func (b *inbox) next() (chunk []byte, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.chunks) == 0 {
		return nil, b.ended
	}
	chunk, b.chunks = b.chunks[0], b.chunks[1:]
	return chunk, false
}

func (b *inbox) drop(chunk []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cost -= stdinCost(len(chunk))
}
