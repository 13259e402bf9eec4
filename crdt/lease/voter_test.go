package lease

import (
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// A voter's promises, step by step: each line is one request, at seconds of its
// clock.
func TestVoter(t *testing.T) {
	one, two := SetOf(0, []stmt.Key{{1}, {2}, {3}}), SetOf(1, []stmt.Key{{1}, {4}, {5}})
	a, b := stmt.Key{0xa}, stmt.Key{0xb}
	type step struct {
		at     int
		why    string
		r      Request
		known  uint64
		reboot string // not "": it restarts first, in that boot
		lost   bool   // without its memory
		want   bool
	}
	ask := func(k stmt.Key, nonce uint64) Request {
		return Request{Instance: "web", Set: one, Holder: k, Nonce: nonce, Generation: 5}
	}
	with := func(r Request, f func(*Request)) Request { f(&r); return r }
	in2 := func(r *Request) { r.Set, r.Term = two, 1 }
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"one holder at a time, and its lease and the margin are waited for", []step{
			{at: 100, r: ask(a, 1), want: true}, {at: 110, r: ask(a, 2), want: true},
			{at: 144, r: ask(b, 1)}, {at: 145, r: ask(b, 2), want: true}, {at: 146, r: ask(a, 3)},
		}},
		{"what is given back is free at once", []step{
			{at: 100, r: ask(a, 1), want: true},
			{at: 101, why: "of another request", r: with(ask(a, 7), func(r *Request) { r.Release = true })},
			{at: 101, why: "not the holder", r: with(ask(b, 1), func(r *Request) { r.Release = true })},
			{at: 102, r: with(ask(a, 1), func(r *Request) { r.Release = true }), want: true},
			{at: 102, r: ask(b, 1), want: true},
			{at: 103, why: "once more, late", r: with(ask(a, 1), func(r *Request) { r.Release = true })},
			{at: 104, r: ask(a, 2)},
		}},
		{"a later claim ends nothing that is held, and nothing before it begins", []step{
			{at: 100, r: ask(a, 1), known: 6}, {at: 100, r: ask(a, 2), known: 5, want: true},
			{at: 110, r: ask(a, 3), known: 6, want: true}, {at: 145, r: ask(a, 4), known: 6},
		}},
		{"a restart forgets nothing", []step{
			{at: 100, r: ask(a, 1), want: true}, {at: 101, reboot: "boot", r: ask(b, 1)}, {at: 101, r: ask(a, 2), want: true},
		}},
		{"after a reboot only the holder that is on record is granted, for a whole lease", []step{
			{at: 1000, r: ask(a, 1), want: true}, {at: 3, reboot: "next", r: ask(b, 1)}, {at: 4, r: ask(a, 2), want: true},
			{at: 38, r: ask(b, 2)}, {at: 39, r: ask(b, 3), want: true},
		}},
		{"who lost its memory grants nobody anything for a whole lease", []step{
			{at: 100, r: ask(a, 1), want: true}, {at: 101, reboot: "boot", lost: true, r: ask(a, 2)}, {at: 102, r: ask(b, 1)},
			{at: 136, r: ask(b, 2), want: true},
		}},
		{"new voters wait for the lease of the former ones, but for its holder", []step{
			{at: 100, r: with(ask(b, 1), in2)}, {at: 134, r: with(ask(b, 2), in2)}, {at: 135, r: with(ask(b, 3), in2), want: true},
			{at: 136, why: "the former term", r: ask(b, 4)},
		}},
		{"its holder goes on", []step{
			{at: 100, r: with(ask(a, 1), func(r *Request) { in2(r); r.Held = true }), want: true},
			{at: 101, r: with(ask(b, 1), func(r *Request) { in2(r); r.Held = true })},
			{at: 110, why: "it has lost the lease meanwhile", r: with(ask(a, 2), in2)},
			{at: 120, r: with(ask(a, 3), func(r *Request) { in2(r); r.Held = true }), want: true},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			at := func(s int) time.Duration { return time.Duration(s) * time.Second }
			boot, kept := "boot", &Memory{Boot: "boot"}
			v := NewVoter(times, boot, 0, kept)
			for i, s := range tc.steps {
				if s.reboot != "" {
					boot = s.reboot
					m := v.Memory()
					if kept = &m; s.lost {
						kept = nil
					}
					v = NewVoter(times, boot, at(s.at), kept)
				}
				if got, _ := v.Ask(at(s.at), s.r, s.known); got.Granted != s.want {
					t.Errorf("step %d, at %ds: %+v, want %v (%s)", i, s.at, got, s.want, s.why)
				}
			}
		})
	}
}
