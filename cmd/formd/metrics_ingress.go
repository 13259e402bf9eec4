package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/formthefog/formation/wg/ingress"
)

// ingressCollector reads an ingress's figures when it is scraped. Its labels have
// few values, whatever tenants and clients do: no names, no addresses.
type ingressCollector struct {
	sites *publicSites
	descs map[string]*prometheus.Desc
}

func newIngressCollector(s *publicSites) *ingressCollector {
	c := &ingressCollector{sites: s, descs: map[string]*prometheus.Desc{}}
	for name, d := range map[string]struct {
		help   string
		labels []string
	}{
		"requests_total":                        {"HTTP requests for sites since the start, by the class of the answer; broken: it ended half-way, none: the client left before it.", []string{"code"}},
		"retries_total":                         {"Further attempts of requests on another replica, since the start.", nil},
		"failed_total":                          {"What no replica took since the start: HTTP requests, TCP connections, UDP clients.", []string{"kind"}},
		"refused_total":                         {"What clients were refused since the start.", []string{"reason"}},
		"open":                                  {"Connections of clients, and clients of UDP ports, that there are.", []string{"kind"}},
		"sites":                                 {"Host names that are served.", nil},
		"ports":                                 {"Plain ports that are served; shut: they could not be opened.", []string{"state"}},
		"certificates":                          {"Certificates held for sites, since a client asked for them.", nil},
		"certificates_expiry_timestamp_seconds": {"Unix time at which the first of the certificates held expires.", nil},
		"certificates_obtained_total":           {"Certificates got since the start, renewals too.", nil},
		"certificates_obtain_failures_total":    {"Attempts to get a certificate that failed since the start.", nil},
	} {
		c.descs[name] = prometheus.NewDesc("formd_ingress_"+name, d.help, d.labels, nil)
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *ingressCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *ingressCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(name string, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.GaugeValue, v, labels...)
	}
	counts := func(name string, by map[string]uint64) {
		for word, n := range by {
			ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.CounterValue, float64(n), word)
		}
	}
	count := func(name string, n uint64) {
		ch <- prometheus.MustNewConstMetric(c.descs[name], prometheus.CounterValue, float64(n))
	}
	s := c.sites.Stats()
	counts("requests_total", s.Requests)
	count("retries_total", s.Repeated)
	counts("failed_total", s.Failed)
	for kind, n := range s.Open {
		gauge("open", float64(n), kind)
	}
	gauge("sites", float64(s.Sites))
	gauge("ports", float64(s.Ports), "open")
	gauge("ports", float64(s.Shut), "shut")
	if c.sites.certificates != nil {
		held := c.sites.certificates.Stats(c.sites.Sites())
		s.Refused[ingress.RefusedName] = held.Refused
		count("certificates_obtained_total", held.Obtained)
		count("certificates_obtain_failures_total", held.Failed)
		gauge("certificates", float64(held.Held))
		if !held.Expires.IsZero() {
			gauge("certificates_expiry_timestamp_seconds", float64(held.Expires.Unix()))
		}
	}
	counts("refused_total", s.Refused)
}
