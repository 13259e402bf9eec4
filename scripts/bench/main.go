// Command bench measures what the project promises about cost and prints one
// line a figure:
//
//	bench: NAME VALUE UNIT (target TARGET) ok|short
//
// It exits 0 whatever falls short: it informs, it does not judge. Ratios are
// taken within one run, so that a slow machine does not look like slow code;
// what is repeated is given as its median. A figure that could not be measured
// says "failed" for its value, and why on stderr.
//
// vm*.go, fetch*.go and the others each register the measurements of one part.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// figure is one line of output.
type figure struct {
	Name   string // "fetch-ratio": what BENCH=regexp matches
	Unit   string // "x", "MiB", "%", "s"
	Target float64
	AtMost bool // the target is an upper bound; otherwise a lower one
}

func (f figure) target() string {
	sign := ">="
	if f.AtMost {
		sign = "<="
	}
	return sign + " " + format(f.Target)
}

func (f figure) met(value float64) bool {
	if f.AtMost {
		return value <= f.Target
	}
	return value >= f.Target
}

// measurement yields the values of its figures by name. It runs Rounds times
// (1 when 0); each figure's median counts. A figure that a round leaves out is
// taken from the other rounds.
type measurement struct {
	Figures []figure
	Rounds  int
	Run     func(ctx context.Context, e *env) (map[string]float64, error)
}

// env is what a measurement may use.
type env struct {
	Dir     string // scratch, removed afterwards; every round gets its own
	Bin     string // folder with form, formd and form-guest
	BaseCAR string // the debian:12 base; may be absent
	Log     io.Writer
}

func (e *env) logf(format string, args ...any) {
	// Talk on stderr; nothing is lost if it cannot be shown.
	_, _ = fmt.Fprintf(e.Log, "bench: "+format+"\n", args...)
}

// measurements is filled by the files' init functions and not changed later.
var measurements []measurement

func register(m measurement) { measurements = append(measurements, m) }

func main() {
	if peerMain() || stateMain() || meshMain() { // a child process of a measurement
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(log)
	pattern := flags.String("run", ".", "regexp of figures to measure")
	list := flags.Bool("list", false, "name the figures and measure nothing")
	bin := flags.String("bin", os.Getenv("FORMATION_BIN"), "folder of the binaries")
	base := flags.String("base", os.Getenv("FORMATION_BASE"), "CAR of the base image")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	if *bin == "" {
		*bin = "bin"
	}
	if *bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	matched := false
	for _, m := range measurements {
		if !slices.ContainsFunc(m.Figures, func(f figure) bool { return wanted.MatchString(f.Name) }) {
			continue
		}
		matched = true
		if *list {
			for _, f := range m.Figures {
				fmt.Fprintf(out, "%s %s (target %s)\n", f.Name, f.Unit, f.target())
			}
			continue
		}
		values, err := m.measure(ctx, env{Bin: *bin, BaseCAR: *base, Log: log})
		if err != nil {
			fmt.Fprintf(log, "bench: %s: %v\n", m.Figures[0].Name, err)
		}
		for _, f := range m.Figures {
			if wanted.MatchString(f.Name) {
				fmt.Fprintln(out, line(f, values[f.Name]))
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if !matched {
		return fmt.Errorf("no figure matches %q (see -list)", *pattern)
	}
	return nil
}

// measure runs the rounds. Values of the rounds before an error count.
func (m measurement) measure(ctx context.Context, e env) (map[string][]float64, error) {
	values := map[string][]float64{}
	for range max(m.Rounds, 1) {
		dir, err := os.MkdirTemp("", "formation-bench-*")
		if err != nil {
			return values, err
		}
		e.Dir = dir
		got, err := m.Run(ctx, &e)
		err = errors.Join(err, os.RemoveAll(dir))
		for name, v := range got {
			values[name] = append(values[name], v)
		}
		if err != nil {
			return values, err
		}
	}
	return values, nil
}

func line(f figure, values []float64) string {
	value, verdict := "failed", "short"
	if len(values) > 0 {
		m := median(values)
		value = format(m)
		if f.met(m) {
			verdict = "ok"
		}
	}
	return fmt.Sprintf("bench: %s %s %s (target %s) %s", f.Name, value, f.Unit, f.target(), verdict)
}

// median of a non-empty list; of two middles, their mean.
func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// format gives three significant digits and no exponent.
func format(v float64) string {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	digits := max(2-int(math.Floor(math.Log10(math.Abs(v)))), 0)
	s := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}
