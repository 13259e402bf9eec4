package live

import "time"

// held is a packet that waits for a node to be unclogged.
type held struct {
	from *socket
	to   *socket
	load []byte
}

// holds says whether a packet has to wait, and keeps it. The caller has the lock.
func (n *network) holds(from, to *socket, load []byte) bool {
	if !n.clogged[from.node] && !n.clogged[to.node] {
		return false
	}
	if len(n.waiting) < queued*len(n.side) {
		n.waiting = append(n.waiting, held{from, to, load})
	}
	return true
}

// Clog has what is sent to and from a node wait until Unclog.
func (s *Swarm) Clog(i int) {
	s.Seen["clog"]++
	s.net.change(func() { s.net.clogged[i] = true })
}

// Unclog lets go what waited.
func (s *Swarm) Unclog(i int) {
	s.Seen["unclog"]++
	var free []held
	s.net.change(func() {
		s.net.clogged[i] = false
		free, s.net.waiting = s.net.waiting, nil
	})
	for _, h := range free { // those of another clogged node wait again
		s.net.send(h.from, h.to.at, h.load)
	}
}

// Clogged are the nodes that are.
func (s *Swarm) Clogged() (out []int) {
	s.net.change(func() {
		for i, is := range s.net.clogged {
			if is {
				out = append(out, i)
			}
		}
	})
	return out
}

// Slow has a node take so much longer for every packet that it receives; zero ends
// that.
func (s *Swarm) Slow(i int, by time.Duration) {
	if by > 0 {
		s.Seen["slow"]++
	}
	s.net.change(func() { s.net.slow[i] = by })
}
