package ingress

import (
	"bufio"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
)

// Why a client is refused: few words, as metrics have them.
const (
	refusedConns      = "connections"        // as many are open as there may be
	refusedConnsOfOne = "connections_of_one" // or as this client may have
	refusedRequests   = "requests"
	refusedFlows      = "flows"
	refusedFlowsOfOne = "flows_of_one"
	refusedSite       = "site" // not one that is served here
)

// RefusedName is the word for what [CertStats] counts as refused.
const RefusedName = "name"

// What clients come by.
const (
	kindHTTP = "http"
	kindTCP  = "tcp"
	kindUDP  = "udp"
)

// Classes of requests that had no answer.
const (
	classNone   = "none"   // before it began, its client left
	classBroken = "broken" // its replica or its client ended it half-way
)

// Stats are counts since the start, and what is open now. No key is a client's or
// a tenant's choice.
type Stats struct {
	// Requests are those of HTTP, of known sites, by the class of their answer, as
	// "2xx"; "broken" are those whose answer ended half-way, "none" those whose
	// client did not wait for one.
	Requests map[string]uint64
	Repeated uint64            // further attempts of them, on another replica
	Failed   map[string]uint64 // what no replica took: requests "http", connections "tcp", clients "udp"
	Refused  map[string]uint64 // by reason
	Sites    int               // served by name
	Ports    int               // plain ones that are open
	Shut     int               // and that should be
	Open     map[string]int    // connections of clients: "http", "tcp"; clients of "udp"
}

// counters are what Stats come from. Safe for concurrent use.
type counters struct {
	repeated atomic.Uint64
	ports    atomic.Int64

	mu       sync.Mutex
	requests map[string]uint64
	failed   map[string]uint64
	refused  map[string]uint64
	open     map[string]int
}

// newCounters has every word there is, so that none appears late.
func newCounters() *counters {
	zero := func(words ...string) map[string]uint64 {
		out := map[string]uint64{}
		for _, w := range words {
			out[w] = 0
		}
		return out
	}
	return &counters{
		requests: zero("1xx", "2xx", "3xx", "4xx", "5xx", classBroken, classNone),
		failed:   zero(kindHTTP, kindTCP, kindUDP),
		refused:  zero(refusedConns, refusedConnsOfOne, refusedRequests, refusedFlows, refusedFlowsOfOne, refusedSite),
		open:     map[string]int{kindHTTP: 0, kindTCP: 0, kindUDP: 0},
	}
}

func (c *counters) refuse(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[reason]++
}

func (c *counters) fail(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failed[kind]++
}

func (c *counters) opened(kind string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[kind] += by
}

// answered counts a request by the status of its answer, 0: it had none, and
// whether that was whole.
func (c *counters) answered(status int, whole bool) {
	class := classNone
	switch {
	case !whole:
		class = classBroken
	case status != 0:
		class = strconv.Itoa(min(status/100, 5)) + "xx" // a replica may say up to 999
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[class]++
}

// Stats returns what was counted.
func (g *Ingress) Stats() Stats {
	g.mu.Lock()
	sites, wanted := len(g.sites), len(g.ports)
	g.mu.Unlock()
	c := g.stats
	c.mu.Lock()
	defer c.mu.Unlock()
	open := int(c.ports.Load())
	return Stats{Requests: maps.Clone(c.requests), Repeated: c.repeated.Load(), Failed: maps.Clone(c.failed), Refused: maps.Clone(c.refused),
		Sites: sites, Ports: open, Shut: max(wanted-open, 0), Open: maps.Clone(c.open)}
}

// Sites returns the names that are served, in order.
func (g *Ingress) Sites() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.sites))
}

// statusWriter notes which status an answer has.
type statusWriter struct {
	http.ResponseWriter
	status int // 0: none yet
}

// WriteHeader implements http.ResponseWriter. What is only informative is followed
// by another.
func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *statusWriter) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Hijack implements what http.ResponseController asks for: a connection is taken
// when protocols are switched.
func (w *statusWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil {
		w.status = http.StatusSwitchingProtocols
	}
	return c, rw, err
}

// Unwrap shows the writer below, for all else.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
