// Command testcount runs test commands and counts what they did, so that many
// tiers end in one plain line: `N passed, N failed, N skipped`.
//
//	testcount go FILE [ARGS...]        go test -json ARGS..., events to FILE
//	testcount step FILE NAME CMD...    any command as one test
//	testcount sum FILE...              the line; exit 1 if anything failed
//
// While a tier runs it prints one line a package, and the output of what fails.
// A test and its subtests count one each, as go test -v lists them; a package
// that does not build or panics counts as a failure.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if !errors.Is(err, errFailed) {
			fmt.Fprintln(os.Stderr, "testcount:", err)
		}
		os.Exit(1)
	}
}

// errFailed says that tests failed, which has been told already.
var errFailed = errors.New("tests failed")

func run(args []string) error {
	if len(args) >= 2 {
		switch args[0] {
		case "go":
			return goTest(args[1], args[2:])
		case "step":
			if len(args) >= 4 {
				return step(args[1], args[2], args[3:])
			}
		case "sum":
			return sum(os.Stdout, args[1:])
		}
	}
	return errors.New("usage: testcount go FILE [ARG]... | step FILE NAME CMD [ARG]... | sum FILE [FILE]")
}

// event is one line of go test -json.
type event struct {
	Time       time.Time `json:",omitzero"`
	Action     string
	Package    string  `json:",omitempty"`
	ImportPath string  `json:",omitempty"` // of build output
	Test       string  `json:",omitempty"`
	Elapsed    float64 `json:",omitempty"`
	Output     string  `json:",omitempty"`

	FailedBuild string `json:",omitempty"`
}

func goTest(file string, args []string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	stream, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c := newCounter(os.Stdout)
	readErr := c.read(io.TeeReader(stream, out))
	if readErr != nil {
		// Let go test finish rather than die of a closed pipe.
		_, _ = io.Copy(out, stream)
	}
	waitErr := cmd.Wait()
	switch {
	case readErr != nil:
		return readErr
	case waitErr != nil && c.failed == 0:
		// Whatever it was, it must not pass for success in the sum.
		return errors.Join(record(out, "go test", false, waitErr.Error()), waitErr)
	case waitErr != nil:
		return errFailed
	}
	return nil
}

// step runs a command as the test NAME, appending to file.
func step(file, name string, command []string) error {
	out, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	start := time.Now()
	cmd := exec.Command(command[0], command[1:]...)
	text, runErr := cmd.CombinedOutput()
	mark := "ok  "
	if runErr != nil {
		mark = "FAIL"
		fmt.Printf("%s\n%s: %v\n", bytes.TrimRight(text, "\n"), name, runErr)
	}
	fmt.Printf("%s\t%s\t%.1fs\n", mark, name, time.Since(start).Seconds())
	if err := record(out, name, runErr == nil, string(text)); err != nil {
		return err
	}
	if runErr != nil {
		return errFailed
	}
	return nil
}

func record(w io.Writer, name string, passed bool, output string) error {
	action := "pass"
	if !passed {
		action = "fail"
	}
	enc := json.NewEncoder(w)
	return errors.Join(
		enc.Encode(event{Time: time.Now(), Action: "output", Package: "check", Test: name, Output: output}),
		enc.Encode(event{Time: time.Now(), Action: action, Package: "check", Test: name}),
	)
}

func sum(w io.Writer, files []string) error {
	c := newCounter(io.Discard)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = c.read(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, name := range c.failures {
		fmt.Fprintf(w, "failed: %s\n", name)
	}
	for _, name := range c.skips {
		fmt.Fprintf(w, "skipped: %s\n", name)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", c.passed, c.failed, c.skipped)
	if c.failed > 0 {
		return errFailed
	}
	if c.passed == 0 {
		return errors.New("no test ran")
	}
	return nil
}

// counter reads streams of events. It keeps a test's output until it knows
// whether the test failed.
type counter struct {
	w                       io.Writer
	passed, failed, skipped int
	failures, skips         []string
	output                  map[string]*strings.Builder // by package and test
	failedIn                map[string]int              // by package
}

func newCounter(w io.Writer) *counter {
	return &counter{w: w, output: map[string]*strings.Builder{}, failedIn: map[string]int{}}
}

func (c *counter) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) > 0 {
			var e event
			if jsonErr := json.Unmarshal(line, &e); jsonErr != nil {
				// Not from the test binary: a tool wrote to the stream.
				fmt.Fprintf(c.w, "%s", line)
			} else {
				c.add(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *counter) add(e event) {
	name := strings.TrimSuffix(e.Package+" "+e.Test, " ")
	switch e.Action {
	case "output", "build-output":
		key := name
		if e.Action == "build-output" {
			key = e.ImportPath
		}
		if c.output[key] == nil {
			c.output[key] = &strings.Builder{}
		}
		c.output[key].WriteString(e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	if e.Test == "" {
		c.endPackage(e)
		return
	}
	switch e.Action {
	case "pass":
		c.passed++
	case "skip":
		c.skipped++
		c.skips = append(c.skips, name)
	case "fail":
		c.failed++
		c.failedIn[e.Package]++
		c.failures = append(c.failures, name)
		c.show(name)
	}
	delete(c.output, name)
}

func (c *counter) endPackage(e event) {
	switch e.Action {
	case "pass":
		fmt.Fprintf(c.w, "ok  \t%s\t%.1fs\n", e.Package, e.Elapsed)
	case "fail":
		if c.failedIn[e.Package] == 0 { // no test to blame: build, panic in TestMain, timeout
			c.failed++
			c.failures = append(c.failures, e.Package)
			if e.FailedBuild != "" {
				c.show(e.FailedBuild)
			}
		}
		c.show(e.Package)
		fmt.Fprintf(c.w, "FAIL\t%s\t%.1fs\n", e.Package, e.Elapsed)
	}
	delete(c.output, e.Package)
}

func (c *counter) show(key string) {
	if text := c.output[key]; text != nil {
		fmt.Fprint(c.w, text.String())
		delete(c.output, key)
	}
}
