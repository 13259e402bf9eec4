package main

import (
	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/store"
)

// wirePack is a pack as --json shows it: the stored form with its author as a
// peer ID, durations in seconds, and lists that are never null. A field here
// stands before one of the same key in what is embedded.
type wirePack struct {
	CID string `json:"cid"`
	*store.Root
	Layers []store.Entry `json:"layers"`
	Run    wireRun       `json:"run"`
	Author string        `json:"author"`
}

type wireRun struct {
	store.RunConfig
	Users      []wireUser     `json:"users"`
	Env        []store.EnvVar `json:"env"`
	Entrypoint []string       `json:"entrypoint"`
	Expose     []store.Port   `json:"expose"`
	Health     *wireHealth    `json:"health,omitempty"`
	GPU        []store.GPU    `json:"gpu"`
	Labels     []store.EnvVar `json:"labels"`
}

type wireUser struct {
	store.User
	SSHAuthorizedKeys []string `json:"ssh_authorized_keys"`
	Groups            []string `json:"groups"`
}

type wireHealth struct {
	Kind     string   `json:"kind"`
	Command  []string `json:"command"`
	Port     int      `json:"port,omitempty"`
	Path     string   `json:"path,omitempty"`
	Interval float64  `json:"interval_seconds"`
	Timeout  float64  `json:"timeout_seconds"`
	Retries  int      `json:"retries"`
}

// wireBase is a base as --json shows it.
type wireBase struct {
	CID string `json:"cid"`
	*store.Base
	Packages []string `json:"packages"`
	Author   string   `json:"author"`
}

// wireOf is a pack for a screen or a log, without its secrets.
func wireOf(id cid.Cid, pack *store.Root) wirePack {
	p := hidden(pack)
	r := p.Run
	w := wirePack{
		CID: id.String(), Root: p, Layers: orEmpty(p.Layers), Author: authorOf(p.Author),
		Run: wireRun{
			RunConfig: r, Users: []wireUser{}, Env: orEmpty(r.Env), Entrypoint: orEmpty(r.Entrypoint), Expose: orEmpty(r.Expose),
			GPU: orEmpty(r.GPU), Labels: orEmpty(r.Labels),
		},
	}
	for _, u := range r.Users {
		w.Run.Users = append(w.Run.Users, wireUser{u, orEmpty(u.SSHAuthorizedKeys), orEmpty(u.Groups)})
	}
	if h := r.Health; h != nil {
		w.Run.Health = &wireHealth{
			Kind: h.Kind, Command: orEmpty(h.Command), Port: h.Port, Path: h.Path,
			Interval: float64(h.Interval) / 1000, Timeout: float64(h.Timeout) / 1000, Retries: h.Retries,
		}
	}
	return w
}

// orEmpty is s, and not null in JSON.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
