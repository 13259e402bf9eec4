package guest

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
)

// script is a guest that answers what it is told to, and remembers what it hears.
type script struct {
	heard  []string
	answer func(told map[Name]bool) MeshReport
}

// run serves a stream until it ends; told is what an honest guest has acknowledged.
func (s *script) run(stream net.Conn) {
	var told map[Name]bool
	for line, next := "", map[Name]bool(nil); ; {
		n, err := ReadNews(stream)
		if err != nil {
			return
		}
		if next == nil {
			next = map[Name]bool{}
			for n := range told {
				next[n] = true
			}
			if told == nil {
				line = "all:"
			}
		}
		for _, raw := range n.Statements {
			line += " +" + string(raw)
			next[NameOf(raw)] = true
		}
		for _, g := range n.Gone {
			line += fmt.Sprintf(" -%x", g[:1])
			delete(next, g)
		}
		if !n.End {
			continue
		}
		if !n.Since && told != nil {
			line = "all:" + line
			clear(next)
			for w := range strings.FieldsSeq(line) {
				if raw, ok := strings.CutPrefix(w, "+"); ok {
					next[NameOf([]byte(raw))] = true
				}
			}
		}
		s.heard = append(s.heard, strings.TrimSpace(line))
		told, next, line = next, nil, ""
		if WriteMeshReport(stream, s.answer(told)) != nil {
			return
		}
	}
}

// What a guest acknowledges it is not told again; what it asks for it is, and all
// of it when it says another sum, or none, or that it has lost count.
func TestTeller(t *testing.T) {
	honest := func(told map[Name]bool) MeshReport { return MeshReport{Sum: Sum(told)} }
	again := func(told map[Name]bool) MeshReport {
		return MeshReport{Sum: Sum(told), Again: []Name{NameOf([]byte("b")), NameOf([]byte("never told"))}}
	}
	first := func(s string) string { n := NameOf([]byte(s)); return fmt.Sprintf("-%x", n[:1]) }
	rounds := []string{"a b c", "a b c", "x a b c", "a c", ""}
	for _, tt := range []struct {
		name   string
		answer func(map[Name]bool) MeshReport
		want   []string
	}{
		{"an honest guest", honest, []string{"all: +a +b +c", "", "+x", "", "all gone"}},
		{"one that lacks something", again, []string{"all: +a +b +c", "+b", "+x +b", "", "all gone"}},
		{"one of before", func(map[Name]bool) MeshReport { return MeshReport{} }, []string{"all: +a +b +c", "all: +a +b +c", "all: +x +a +b +c", "all: +a +c", "all:"}},
		{"one that lost count", func(told map[Name]bool) MeshReport { return MeshReport{Sum: Sum(told), All: true} },
			[]string{"all: +a +b +c", "all: +a +b +c", "all: +x +a +b +c", "all: +a +c", "all:"}},
	} {
		host, agent := net.Pipe()
		s := &script{answer: tt.answer}
		ended := make(chan struct{})
		go func() { defer close(ended); s.run(agent) }()
		var teller Teller
		for _, all := range rounds {
			var raws [][]byte
			for w := range strings.FieldsSeq(all) {
				raws = append(raws, []byte(w))
			}
			if _, err := teller.Round(host, Named(raws)); err != nil {
				t.Fatal(err)
			}
		}
		host.Close()
		<-ended
		gone := func(ss ...string) string {
			for i := range ss {
				ss[i] = first(ss[i])
			}
			slices.Sort(ss)
			return strings.Join(ss, " ")
		}
		for i, want := range tt.want {
			switch {
			case i == 3 && want == "":
				want = gone("b", "x")
			case want == "all gone":
				want = gone("a", "c")
			}
			if s.heard[i] != want {
				t.Errorf("%s: round %d says %q, want %q", tt.name, i, s.heard[i], want)
			}
		}
	}
}

// A round that fails has told nothing for sure.
func TestTellerAfterAnError(t *testing.T) {
	var teller Teller
	all := Named([][]byte{[]byte("a")})
	if _, err := teller.Round(struct {
		io.Reader
		io.Writer
	}{strings.NewReader(""), io.Discard}, all); err == nil {
		t.Error("a guest that says nothing has acknowledged")
	}
	if teller.told != nil {
		t.Errorf("taken for told: %v", teller.told)
	}
}
