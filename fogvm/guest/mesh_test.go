package guest

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
)

func TestRoundsOfNews(t *testing.T) {
	host, agent := net.Pipe()
	defer host.Close()
	defer agent.Close()
	go (&echoGuest{}).news(t.Context(), agent)
	for i, n := range []int{0, 1, MaxNews, 3*MaxNews + 1} {
		statements := make([][]byte, n)
		for i := range statements {
			statements[i] = []byte{byte(i)}
		}
		before := []int{0, 0, 1, 1 + MaxNews}[i]
		if m, err := new(Teller).Round(host, Named(statements)); err != nil || m.Held != before+n {
			t.Errorf("of %d statements: %+v, %v", n, m, err)
		}
	}
}

func TestNewsAreBounded(t *testing.T) {
	for _, n := range []News{
		{Statements: make([][]byte, MaxNews+1)},
		{Statements: [][]byte{make([]byte, maxNewsBytes+1)}},
		{Gone: make([]Name, MaxGone+1)},
		{Since: true},
	} {
		var b bytes.Buffer
		if err := WriteNews(&b, n); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadNews(&b); !errors.Is(err, ErrFrame) {
			t.Errorf("%d statements: %v", len(n.Statements), err)
		}
	}
	for _, text := range []string{`{"gone":["00"]}`, `{"gone":["` + strings.Repeat("zz", 32) + `"]}`, `{"gone":[7]}`} {
		var b bytes.Buffer
		if err := WriteFrame(&b, FrameJSON, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if n, err := ReadNews(&b); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %+v, %v", text, n, err)
		}
	}
	var b bytes.Buffer
	if err := WriteMeshReport(&b, MeshReport{Again: make([]Name, MaxAgain+1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadMeshReport(&b); !errors.Is(err, ErrFrame) {
		t.Errorf("%d again: %v", MaxAgain+1, err)
	}
	b.Reset()
	if err := WriteMeshReport(&b, MeshReport{Problem: strings.Repeat("x\n", MaxReason)}); err != nil {
		t.Fatal(err)
	}
	if m, err := ReadMeshReport(&b); err != nil || len(m.Problem) > MaxReason || strings.Contains(m.Problem, "\n") {
		t.Errorf("%+v, %v", m, err)
	}
}

// FuzzNews: whatever arrives, what is read is within the bounds, and is written
// as it can be read again.
func FuzzNews(f *testing.F) {
	for _, n := range []News{{}, {End: true}, {Statements: [][]byte{{1, 2}, {}}}, {Gone: []Name{{1}, {31: 2}}}, {End: true, Since: true}} {
		var b bytes.Buffer
		if err := WriteNews(&b, n); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if n, err := ReadNews(bytes.NewReader(in)); err == nil {
			if len(n.Statements) > MaxNews || len(n.Gone) > MaxGone {
				t.Fatalf("%d statements, %d gone", len(n.Statements), len(n.Gone))
			}
			var b bytes.Buffer
			if err := WriteNews(&b, n); err != nil {
				t.Fatal(err)
			}
			if again, err := ReadNews(&b); err != nil || len(again.Statements) != len(n.Statements) || !slices.Equal(again.Gone, n.Gone) {
				t.Fatalf("%v, %v", again, err)
			}
		}
		if m, err := ReadMeshReport(bytes.NewReader(in)); err == nil && (len(m.Problem) > MaxReason || len(m.Again) > MaxAgain) {
			t.Fatalf("problem of %d bytes, %d again", len(m.Problem), len(m.Again))
		}
	})
}
