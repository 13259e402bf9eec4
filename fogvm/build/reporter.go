package build

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// TextReporter writes a header line "[2/5] INSTALL python3" per step, its
// output as it comes, and how it ended. Errors of w are ignored: a terminal
// that went away must not fail a build.
func TextReporter(w io.Writer) Reporter { return &textReporter{w: w} }

type textReporter struct {
	w       io.Writer
	midLine bool
}

func (r *textReporter) StepStarted(s StepInfo) { r.line("[%d/%d] %s", s.Index, s.Total, s.Text) }

func (r *textReporter) Output(p []byte) {
	if len(p) > 0 {
		_, _ = r.w.Write(p)
		r.midLine = p[len(p)-1] != '\n'
	}
}

func (r *textReporter) StepDone(s StepInfo, o StepOutcome) {
	what := "no changes"
	if o.LayerSize > 0 {
		what = humanSize(o.LayerSize)
	}
	if o.Cached {
		what += ", cached"
	} else {
		what += ", " + o.Duration.Round(100*time.Millisecond).String()
	}
	r.line("[%d/%d] done: %s", s.Index, s.Total, what)
}

func (r *textReporter) line(format string, args ...any) {
	if r.midLine {
		format = "\n" + format
		r.midLine = false
	}
	_, _ = fmt.Fprintf(r.w, format+"\n", args...)
}

func humanSize(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

type silent struct{}

func (silent) StepStarted(StepInfo)           {}
func (silent) Output([]byte)                  {}
func (silent) StepDone(StepInfo, StepOutcome) {}

// tail keeps the last bytes written to it, cut at a line.
type tail struct{ buf []byte }

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if len(t.buf) > 2*maxTail {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-maxTail:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	b := t.buf
	if len(b) > maxTail {
		b = b[len(b)-maxTail:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return strings.ToValidUTF8(string(b), "\ufffd")
}

// firstLine is s cut for a header.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 120 {
		s = string(r[:119]) + "…"
	}
	return s
}
