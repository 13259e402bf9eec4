package des

import (
	"bytes"
	"io"
)

// side is one end of a stream inside of one event: reading what is not there yet
// lets the other end go on.
type side struct {
	in, out *bytes.Buffer
	wait    func() bool // false: nothing more will come
	sent    func(size int)
}

func (c *side) Read(p []byte) (int, error) {
	for c.in.Len() == 0 {
		if !c.wait() {
			return 0, io.ErrUnexpectedEOF
		}
	}
	return c.in.Read(p)
}

// Write takes one frame, as the protocol writes them.
func (c *side) Write(p []byte) (int, error) {
	c.sent(len(p))
	return c.out.Write(p)
}
