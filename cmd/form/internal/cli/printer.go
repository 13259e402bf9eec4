package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"

	"golang.org/x/term"
)

// Printer writes answers and talk. It is safe for concurrent use.
type Printer struct {
	JSON  bool // answers are JSON
	Quiet bool // no talk but warnings and errors

	mu   sync.Mutex
	out  io.Writer
	err  io.Writer
	tty  bool // err is a terminal
	task *Task
}

// NewPrinter writes answers to out and talk to err.
func NewPrinter(out, err io.Writer) *Printer {
	return &Printer{out: out, err: err, tty: IsTerminal(err)}
}

// IsTerminal says whether v is a file that is a terminal.
func IsTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Answer prints a command's result: v as JSON with --json, else what text
// writes. Lists must not be nil.
func (p *Printer) Answer(v any, text func(w io.Writer)) error {
	var b strings.Builder
	if p.JSON {
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("encode the answer: %w", err)
		}
	} else {
		text(&b)
	}
	return p.write(b.String())
}

// Event prints one item of an endless answer: one JSON object a line with
// --json, else one line of text.
func (p *Printer) Event(v any, text string) error {
	if !p.JSON {
		return p.write(text + "\n")
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	return p.write(string(b) + "\n")
}

func (p *Printer) write(s string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	if _, err := io.WriteString(p.out, s); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}

// Note says something about what is going on.
func (p *Printer) Note(format string, args ...any) {
	if !p.Quiet {
		p.talk(fmt.Sprintf(format, args...))
	}
}

// Warn says something the user should not miss.
func (p *Printer) Warn(format string, args ...any) {
	p.talk("warning: " + fmt.Sprintf(format, args...))
}

// Fail prints an error and its hints.
func (p *Printer) Fail(text string, hints []string) {
	var b strings.Builder
	b.WriteString("error: " + text)
	for _, h := range hints {
		b.WriteString("\nhint: " + h)
	}
	p.talk(b.String())
}

// Raw prints lines that carry their own form, such as FILE:LINE:COL: message.
func (p *Printer) Raw(text string) { p.talk(text) }

func (p *Printer) talk(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	// With stderr gone there is nobody to tell.
	_, _ = fmt.Fprintln(p.err, s)
}

// Talk is where streamed talk (build output) goes.
func (p *Printer) Talk() io.Writer { return talkWriter{p} }

type talkWriter struct{ p *Printer }

func (t talkWriter) Write(b []byte) (int, error) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.p.clear()
	if t.p.Quiet {
		return len(b), nil
	}
	return t.p.err.Write(b)
}

// Terminal says whether the talk goes to a terminal.
func (p *Printer) Terminal() bool { return p.tty }

// Table writes rows under a header in aligned columns.
func Table(w io.Writer, header []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for _, r := range rows {
		for i, c := range r {
			if c == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	// w is a memory buffer: it does not fail.
	_ = t.Flush()
}

// Pairs writes "name: value" lines with the values aligned; empty values are
// left out.
func Pairs(w io.Writer, pairs ...[2]string) {
	width := 0
	for _, p := range pairs {
		if p[1] != "" {
			width = max(width, len(p[0]))
		}
	}
	for _, p := range pairs {
		if p[1] != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width+1, p[0]+":", p[1])
		}
	}
}

// Bytes is a size for people, in binary units.
func Bytes(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0") + " " + units[i:i+1] + "iB"
}
