package main

import (
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile"
	"github.com/formthefog/formation/p2p"
)

// collector reads the node's figures when it is scraped.
type collector struct {
	node      *p2p.Node
	mesh      *mesh
	state     *crdt.Replica
	placement api.Placement
	guests    guests
	leases    func() reconcile.LeaseStats
	refused   func() map[string]uint64 // connections, by reason
	requests  func() map[string]uint64 // that were refused, by reason
	descs     map[string]*prometheus.Desc
}

func newCollector(node *p2p.Node, m *mesh, state *crdt.Replica, placement api.Placement, g guests, leases func() reconcile.LeaseStats, refused, requests func() map[string]uint64) *collector {
	c := &collector{node: node, mesh: m, state: state, placement: placement, guests: g, leases: leases, refused: refused, requests: requests, descs: map[string]*prometheus.Desc{}}
	for name, d := range map[string]struct {
		help   string
		labels []string
	}{
		"peers":                        {"Nodes this node is connected to.", nil},
		"clients":                      {"Clients connected to this node.", nil},
		"nodes":                        {"Nodes of the swarm by what this node's probes say.", []string{"live"}},
		"instances":                    {"Instances by status.", []string{"status"}},
		"vms":                          {"Virtual machines on this node by phase.", []string{"phase"}},
		"vms_paused":                   {"Virtual machines on this node that are paused because no lease lets them run.", nil},
		"leases_held":                  {"Leases of fenced instances that this node holds.", nil},
		"lease_requests_total":         {"Requests for leases that this node has answered as a voter since the start, its own too.", []string{"result"}},
		"lease_renewals_failed_total":  {"Attempts to renew a lease that most of the voters did not grant, since the start.", nil},
		"statements_held":              {"Signed statements held.", nil},
		"statements_pending":           {"Statements that wait for others.", nil},
		"statements_applied_total":     {"Statements merged since the start.", nil},
		"statements_refused_total":     {"What peers said and was refused since the start: statements, whole messages, sessions.", []string{"reason"}},
		"equivocations_total":          {"Two contents that one key has signed for one register or change, found since the start.", []string{"kind"}},
		"peers_refused":                {"Peers kept out for repeated offences.", nil},
		"peer_offences_total":          {"What peers did that no honest one does, since the start.", []string{"reason"}},
		"streams_refused_total":        {"Streams of peers over a limit of this node, since the start.", nil},
		"admissions_refused_total":     {"Connections not admitted since the start.", []string{"reason"}},
		"requests_refused_total":       {"Requests and streams to guests that peers were refused since the start.", []string{"reason"}},
		"sync_sessions_total":          {"Anti-entropy sessions since the start.", []string{"result"}},
		"state_log_bytes":              {"Size of the state log.", nil},
		"network_received_bytes_total": {"Bytes received from peers.", nil},
		"network_sent_bytes_total":     {"Bytes sent to peers.", nil},
		"relay_circuits":               {"Connections between members that this node relays.", nil},
		"relay_bytes_total":            {"Bytes relayed for members since the start; waited: those over a budget.", []string{"pace"}},
		"relay_refused_total":          {"Reservations and circuits that were refused since the start.", []string{"reason"}},
		"mesh_peers":                   {"Peers of this machine's own interface on the mesh.", nil},
		"mesh_hosts":                   {"Hosts and devices with which datagrams of the mesh were exchanged lately, by path.", []string{"path"}},
		"mesh_received_bytes":          {"Bytes received by this machine's own interface on the mesh, from the peers it has.", nil},
		"mesh_sent_bytes":              {"Bytes sent by this machine's own interface on the mesh, to the peers it has.", nil},
	} {
		c.descs[name] = prometheus.NewDesc("formd_"+name, d.help, d.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	send := func(name string, t prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], t, v, labels...)
	}
	gauge := func(name string, v float64, labels ...string) { send(name, prometheus.GaugeValue, v, labels...) }
	count := func(name string, v float64, labels ...string) { send(name, prometheus.CounterValue, v, labels...) }

	net := c.node.Stats()
	gauge("peers", float64(net.Peers))
	gauge("clients", float64(net.Clients))
	gauge("peers_refused", float64(net.Refused))
	count("streams_refused_total", float64(net.StreamsRefused))
	for what, n := range net.Offences {
		count("peer_offences_total", float64(n), what)
	}
	for reason, n := range c.refused() {
		count("admissions_refused_total", float64(n), reason)
	}
	for reason, n := range c.requests() {
		count("requests_refused_total", float64(n), reason)
	}
	count("network_received_bytes_total", float64(net.Total.In))
	count("network_sent_bytes_total", float64(net.Total.Out))

	gauge("relay_circuits", float64(net.Relay.Circuits))
	count("relay_bytes_total", float64(net.Relay.Bytes-net.Relay.Waited), "at_once")
	count("relay_bytes_total", float64(net.Relay.Waited), "waited")
	for reason, n := range net.Relay.Refused {
		count("relay_refused_total", float64(n), reason)
	}

	for path, n := range c.mesh.pathCounts() {
		gauge("mesh_hosts", float64(n), path)
	}
	own := c.mesh.status()
	var received, sent int64
	for _, p := range own.Peers {
		received, sent = received+p.Received, sent+p.Sent
	}
	gauge("mesh_peers", float64(len(own.Peers)))
	gauge("mesh_received_bytes", float64(received))
	gauge("mesh_sent_bytes", float64(sent))

	s := c.state.Stats()
	gauge("statements_held", float64(s.Held))
	gauge("statements_pending", float64(s.Pending))
	count("statements_applied_total", float64(s.Applied))
	for reason, n := range s.RefusedBy {
		count("statements_refused_total", float64(n), reason.String())
	}
	for _, kind := range []stmt.Kind{stmt.KindNode, stmt.KindClaim, stmt.KindSpec} {
		count("equivocations_total", float64(s.Equivocations[kind]), string(kind))
	}
	count("sync_sessions_total", float64(s.Sessions), "ok")
	count("sync_sessions_total", float64(s.FailedSessions), "failed")
	gauge("state_log_bytes", float64(s.LogBytes))

	v := c.state.View()
	live := map[string]int{"alive": 0, "suspect": 0, "dead": 0, "unknown": 0}
	for _, n := range v.Nodes() {
		live[c.placement.Live(n.Key)]++
	}
	for word, n := range live {
		gauge("nodes", float64(n), word)
	}
	status := map[string]int{api.StatusPending: 0, api.StatusSuccess: 0, api.StatusFailure: 0}
	for _, spec := range v.Instances() {
		word, _ := c.placement.Status(v, spec)
		status[word]++
	}
	for word, n := range status {
		gauge("instances", float64(n), word)
	}
	phases := map[string]int{}
	for _, vm := range c.guests.vms.List() {
		phases[string(vm.Phase)]++
	}
	for phase, n := range phases {
		gauge("vms", float64(n), phase)
	}
	l := c.leases()
	gauge("vms_paused", float64(l.Paused))
	gauge("leases_held", float64(l.Held))
	count("lease_requests_total", float64(l.Granted), "granted")
	count("lease_requests_total", float64(l.Denied), "refused")
	count("lease_renewals_failed_total", float64(l.RenewalsFailed))
}

// newFigures has the collector's figures and the Go runtime's; parts that not every
// node has add theirs.
func newFigures(c *collector) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

func metricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// pprofHandler serves profiles; only the unix socket reaches it.
func pprofHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
