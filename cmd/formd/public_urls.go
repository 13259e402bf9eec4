package main

import (
	"sync"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/routes"
	"github.com/formthefog/formation/crdt"
)

// publicURLs says by which URLs everybody reaches an instance. Those of all are
// found out at once and kept as long as the view is the same, because lists ask
// for each.
func publicURLs(zone string) func(*crdt.View, string) []api.PublicURL {
	var mu sync.Mutex
	var of *crdt.View
	var known map[string][]routes.URL
	return func(v *crdt.View, id string) []api.PublicURL {
		mu.Lock()
		defer mu.Unlock()
		if v != of {
			of, known = v, routes.Public(v, v.Nodes(), zone)
		}
		var out []api.PublicURL
		for _, u := range known[id] {
			out = append(out, api.PublicURL{URL: u.URL, Nodes: u.Nodes, Addresses: append([]string{}, u.Addresses...)})
		}
		return out
	}
}
