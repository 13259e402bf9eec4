package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
)

func TestErrorf(t *testing.T) {
	e := Errorf(3, "read %s: %w", "x", fs.ErrNotExist).Hint("try %d", 1).Hint("2%%")
	if e.Error() != "read x: file does not exist" || !errors.Is(e, fs.ErrNotExist) || e.Code != 3 {
		t.Errorf("got %q, code %d, is not-exist %v", e.Error(), e.Code, errors.Is(e, fs.ErrNotExist))
	}
	if got := fmt.Sprint(e.Hints); got != "[try 1 2%]" {
		t.Errorf("hints %s", got)
	}
	var target *Error
	if !errors.As(fmt.Errorf("ship: %w", e), &target) || target != e {
		t.Error("an Error is lost when it is wrapped")
	}
}

func TestAnswer(t *testing.T) {
	type v struct {
		A string `json:"a"`
	}
	for _, c := range []struct {
		json bool
		want string
	}{{false, "text\n"}, {true, "{\n  \"a\": \"<&>\"\n}\n"}} {
		var out, talk bytes.Buffer
		p := NewPrinter(&out, &talk)
		p.JSON = c.json
		if err := p.Answer(v{"<&>"}, func(w io.Writer) { fmt.Fprintln(w, "text") }); err != nil {
			t.Fatal(err)
		}
		if out.String() != c.want || talk.Len() != 0 {
			t.Errorf("json %v: stdout %q, stderr %q", c.json, out.String(), talk.String())
		}
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestAnswerThatCannotBeWritten(t *testing.T) {
	p := NewPrinter(broken{}, io.Discard)
	if err := p.Event(1, "x"); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v: a lost answer must be an error", err)
	}
}

func TestTalk(t *testing.T) {
	var out, talk bytes.Buffer
	p := NewPrinter(&out, &talk)
	p.Note("one")
	p.Quiet = true
	p.Note("two")
	p.Warn("three")
	p.Fail("four", []string{"five", "six"})
	fmt.Fprint(p.Talk(), "seven")
	if want := "one\nwarning: three\nerror: four\nhint: five\nhint: six\n"; talk.String() != want {
		t.Errorf("stderr %q, want %q", talk.String(), want)
	}
	if out.Len() > 0 {
		t.Errorf("talk on stdout: %q", out.String())
	}
}

// Without a terminal nothing is drawn, however long it takes.
func TestNoProgressWithoutTerminal(t *testing.T) {
	var talk bytes.Buffer
	p := NewPrinter(io.Discard, &talk)
	task := p.Start("x")
	task.Title("y")
	task.Progress(1, 2)
	task.Done()
	task.Done()
	if task != nil || talk.Len() > 0 {
		t.Errorf("drew %q without a terminal", talk.String())
	}
}

// On a terminal a task draws, makes room for talk, and clears up.
func TestProgress(t *testing.T) {
	var talk bytes.Buffer
	p := NewPrinter(io.Discard, &talk)
	p.tty = true
	task := p.Start("fetching")
	task.draw()
	task.Progress(512, 1024)
	p.Note("note")
	task.Progress(1024, 1024)
	task.Done()
	task.draw() // the timer may fire late
	p.Note("end")
	for _, want := range []string{"fetching", "note\n", "end\n"} {
		if !strings.Contains(talk.String(), want) {
			t.Errorf("stderr %q lacks %q", talk.String(), want)
		}
	}
	if p.task != nil {
		t.Error("the task is still there")
	}
}

func TestTables(t *testing.T) {
	var b bytes.Buffer
	Table(&b, []string{"A", "LONG"}, [][]string{{"xxx", ""}, {"y", "z"}})
	if want := "A    LONG\nxxx  -\ny    z\n"; b.String() != want {
		t.Errorf("table %q, want %q", b.String(), want)
	}
	b.Reset()
	Pairs(&b, [2]string{"a", "1"}, [2]string{"empty and long", ""}, [2]string{"bcd", "2"})
	if want := "a:    1\nbcd:  2\n"; b.String() != want {
		t.Errorf("pairs %q, want %q", b.String(), want)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 512 << 20: "512 MiB", 5 << 30: "5 GiB", 1<<64 - 1: "16 EiB",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}
