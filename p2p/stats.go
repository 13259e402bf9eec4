package p2p

import (
	"github.com/formthefog/formation/p2p/exchange"
)

// Bytes counts stream payload since the node started.
type Bytes struct{ In, Out int64 }

// Stats is a snapshot for metrics.
type Stats struct {
	Peers          int               // admitted, without clients
	Clients        int               // admitted clients
	Known          int               // peers remembered or configured
	Refused        int               // peers kept out for repeated offences
	Offences       map[string]uint64 // what peers did that no honest one does
	StreamsRefused uint64            // streams of peers over a limit of the host
	Total          Bytes             // of all protocols
	Protocols      map[string]Bytes  // by full protocol ID; idle ones are forgotten after an hour
	Exchange       exchange.Stats    // zero without Blocks
	Relay          RelayStats        // zero on a client
}

// Stats returns a snapshot. Byte counts lag by about a second.
func (n *Node) Stats() Stats {
	st := Stats{Protocols: make(map[string]Bytes), StreamsRefused: n.streamsRefused.Load()}
	if n.relayed != nil {
		st.Relay = n.relayed.snapshot()
	}
	st.Refused, st.Offences = n.penalties.count()
	for _, a := range n.gate.admitted() {
		if a.client {
			st.Clients++
		} else {
			st.Peers++
		}
	}
	n.redial.mu.Lock()
	for _, e := range n.redial.book.entries {
		if e.met || e.boot {
			st.Known++
		}
	}
	n.redial.mu.Unlock()
	total := n.bytes.GetBandwidthTotals()
	st.Total = Bytes{In: total.TotalIn, Out: total.TotalOut}
	for p, s := range n.bytes.GetBandwidthByProtocol() {
		if p == "" { // bytes sent before a stream had a protocol
			p = "negotiation"
		}
		st.Protocols[string(p)] = Bytes{In: s.TotalIn, Out: s.TotalOut}
	}
	if n.blocks != nil {
		var err error
		if st.Exchange, err = n.blocks.Stats(); err != nil {
			n.log.Debug("exchange stats", "err", err)
		}
	}
	return st
}
