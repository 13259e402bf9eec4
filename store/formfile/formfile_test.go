package formfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite the golden files; review them as a diff")

// TestGood compares what valid files mean with testdata/good/*.json.
func TestGood(t *testing.T) {
	for _, file := range files(t, "good", 12) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := Parse(filepath.Base(file), read(t, file))
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			enc := json.NewEncoder(&got)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			if err := enc.Encode(f); err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".formfile")+".json", got.Bytes())
		})
	}
}

// TestBad compares every error of invalid files with testdata/bad/*.golden.
func TestBad(t *testing.T) {
	for _, file := range files(t, "bad", 50) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			src := read(t, file)
			f, err := Parse("Formfile", src)
			if f != nil || err == nil {
				t.Fatalf("accepted: %+v", f)
			}
			checkErrors(t, src, err)
			golden(t, strings.TrimSuffix(file, ".formfile")+".golden", []byte(err.Error()+"\n"))
		})
	}
}

// checkErrors says what holds for the errors of any input.
func checkErrors(t *testing.T, src []byte, err error) {
	t.Helper()
	var list ErrorList
	if !errors.As(err, &list) || len(list) == 0 || len(list) > MaxErrors {
		t.Fatalf("%T with %d errors, want an ErrorList of 1 to %d", err, len(list), MaxErrors)
	}
	lines := strings.Split(string(src), "\n")
	prev := Pos{}
	for _, e := range list {
		if e.Line < 1 || e.Line > len(lines) || e.Col < 1 || e.Col > utf8.RuneCountInString(lines[e.Line-1])+1 {
			t.Errorf("%v: no such place in the file", e)
		}
		if e.Line < prev.Line || e.Line == prev.Line && e.Col < prev.Col {
			t.Errorf("%v: not sorted", e)
		}
		if e.Msg == "" || strings.ContainsAny(e.Msg+e.Hint, "\n\r") {
			t.Errorf("%v: message %q hint %q", e, e.Msg, e.Hint)
		}
		prev = Pos{e.Line, e.Col}
	}
}

func TestTooLarge(t *testing.T) {
	_, err := Parse("Formfile", bytes.Repeat([]byte{'#'}, MaxFileBytes+1))
	if err == nil || !strings.HasPrefix(err.Error(), "Formfile:1:1: ") {
		t.Fatalf("got %v", err)
	}
	src := append([]byte("NAME a\n#"), bytes.Repeat([]byte{'x'}, MaxFileBytes-8)...)
	if _, err := Parse("Formfile", src); err != nil {
		t.Fatalf("%d bytes: %v", len(src), err)
	}
}

// TestWork: places are found without reading a line over and over, errors stop
// the work, and no instruction is larger than it may be.
func TestWork(t *testing.T) {
	// Lines of head and parts, as long and as many as fit.
	lines := func(head, part, tail string) string {
		line := head + strings.Repeat(part, min(MaxWords-10, (MaxLineBytes-len(head)-len(tail))/len(part))) + tail + "\n"
		return "NAME a\n" + strings.Repeat(line, (MaxFileBytes-7)/len(line))
	}
	for name, src := range map[string]string{
		"variables":      lines("ENV ", "A=1 ", ""),
		"bad variables":  lines("ENV ", "x ", ""),
		"long variables": lines("ENV ", "A"+strings.Repeat("é", 50)+"=1 ", ""),
		"bad words":      lines("USER ", "x ", ""),
		"unknown keys":   lines("USER ", "x:y ", ""),
		"ports":          lines("EXPOSE ", "80 ", ""),
		"bad ports":      lines("EXPOSE ", "x ", ""),
		"packages":       lines("INSTALL ", "aa ", ""),
		"bad packages":   lines("INSTALL ", "A ", ""),
		"sources":        lines("COPY ", "../x ", "/x"),
		"options":        lines("COPY ", "--x ", "x /x"),
		"health options": lines("HEALTHCHECK ", "--intervl=5 ", "TCP 80"),
		"continuations":  lines("RUN ", "a1 \\\n", "a2"),
		"lists":          lines(`USER username:a ssh_authorized_keys:"`, "k,", `" groups:`+strings.Repeat("A,", 4000)),
		"no text":        lines("\x01", "x", ""),
		"unknown":        lines("INSTAL", " x", ""),
		"too long":       "NAME a\nRUN " + strings.Repeat("x \\\n", MaxFileBytes/4-10) + "\n",
	} {
		p := newParser("Formfile")
		p.parse(src)
		if p.work > 2*len(src) {
			t.Errorf("%s: %d bytes read for places in %d", name, p.work, len(src))
		}
		if len(p.errs) > MaxErrors || len(p.file.Warnings) > MaxErrors {
			t.Errorf("%s: %d errors", name, len(p.errs))
		}
		if p.made > 2*MaxErrors {
			t.Errorf("%s: %d errors were made, to show %d", name, p.made, MaxErrors)
		}
	}
}

func TestLineTooLong(t *testing.T) {
	for src, want := range map[string]string{
		"NAME a\n  RUN x \\\n" + strings.Repeat("y", MaxLineBytes) + "\nVCPU 0\n": "Formfile:2:3: the instruction is longer than 262144 bytes\nFormfile:4:6: VCPU must be from 1 to 128, not 0",
		"NAME a\nINSTALL" + strings.Repeat(" ab", MaxWords+1) + "\n":              "Formfile:2:6153: an instruction of more than 2048 words",
	} {
		if _, err := Parse("Formfile", []byte(src)); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestSecretNeverShows(t *testing.T) {
	f, err := Parse("Formfile", []byte("NAME a\nNOCOPY\nUSER username:bob passwd:hunter2\n"))
	if err != nil {
		t.Fatal(err)
	}
	if string(f.Users[0].Password) != "hunter2" {
		t.Errorf("password %q", string(f.Users[0].Password))
	}
	js, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(js), fmt.Sprintf("%v %+v %#v %s", f.Users[0], f.Users[0], f.Users[0], f.Users[0].Password), f.Warnings[0].String()} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("the password shows in %s", s)
		}
	}
}

func TestSuggest(t *testing.T) {
	for _, c := range []struct{ word, want string }{
		{"INSTAL", "INSTALL"}, {"entripoint", "ENTRYPOINT"}, {"COYP", "COPY"}, {"CPUS", "CPU"},
		{"XYZZY", ""}, {strings.Repeat("A", 1000), ""}, {"", ""},
	} {
		if got := suggest(c.word, instructionNames()); got != c.want {
			t.Errorf("suggest(%.20q) = %q, want %q", c.word, got, c.want)
		}
	}
}

// FuzzParse: no panic, errors with true places, and bounds that hold.
func FuzzParse(f *testing.F) {
	for _, dir := range []string{"good", "bad"} {
		names, err := filepath.Glob(filepath.Join("testdata", dir, "*.formfile"))
		if err != nil {
			f.Fatal(err)
		}
		for _, n := range names {
			src, err := os.ReadFile(n)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		file, err := Parse("Formfile", src)
		if err != nil {
			checkErrors(t, src, err)
			return
		}
		checkBounds(t, file)
	})
}

// checkBounds is the promise of the package doc about valid files.
func checkBounds(t *testing.T, f *File) {
	t.Helper()
	ok := dnsLabel.MatchString(f.Name) &&
		f.VCPU >= MinVCPU && f.VCPU <= MaxVCPU &&
		f.MemoryBytes >= MinMemoryBytes && f.MemoryBytes <= MaxMemoryBytes &&
		f.DiskBytes >= MinDiskBytes && f.DiskBytes <= MaxDiskBytes &&
		f.Replicas >= 0 && f.Replicas <= MaxReplicas &&
		filepath.IsAbs(f.Workdir) && len(f.Users) <= MaxUsers && len(f.Env) <= MaxEnv &&
		len(f.Expose) <= MaxExpose && len(f.Entrypoint) <= MaxEntrypoint
	if !ok {
		t.Errorf("out of bounds: %+v", f)
	}
	for _, s := range f.Steps {
		if s.Copy == nil {
			continue
		}
		if !filepath.IsAbs(s.Copy.Dest) || filepath.Clean(s.Copy.Dest) != s.Copy.Dest {
			t.Errorf("COPY to %q", s.Copy.Dest)
		}
		for _, src := range s.Copy.Sources {
			if src == "" || filepath.IsAbs(src) || src == ".." || strings.HasPrefix(src, "../") || filepath.Clean(src) != src {
				t.Errorf("COPY from %q", src)
			}
		}
	}
}

func files(t *testing.T, dir string, least int) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", dir, "*.formfile"))
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < least {
		t.Fatalf("%d files in testdata/%s, want at least %d", len(names), dir, least)
	}
	return names
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want := read(t, name); !bytes.Equal(got, want) {
		t.Errorf("%s differs.\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}
