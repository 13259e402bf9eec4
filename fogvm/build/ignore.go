package build

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/formthefog/formation/store/formfile"
)

// Bounds of a .formignore.
const (
	ignoreFile     = ".formignore"
	maxIgnoreBytes = 256 << 10
	maxIgnoreRules = 2000
)

// ignoreRules decide what COPY of a directory or a glob leaves out. The
// language is that of .gitignore: a later line wins, ! takes back, a trailing
// slash means directories only, a slash elsewhere anchors the pattern to the
// context, and nothing below an ignored directory can be taken back.
type ignoreRules []ignoreRule

type ignoreRule struct {
	re      *regexp.Regexp
	negate  bool
	dirOnly bool
}

func parseIgnore(src string) (ignoreRules, error) {
	if len(src) > maxIgnoreBytes {
		return nil, &ContextError{ignoreFile, formfile.Pos{Line: 1, Col: 1}, fmt.Sprintf("larger than %d bytes", maxIgnoreBytes)}
	}
	var rules ignoreRules
	for i, line := range strings.Split(strings.TrimPrefix(src, "\ufeff"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		written := line
		if !strings.HasSuffix(line, `\ `) {
			line = strings.TrimRight(line, " \t")
		}
		if line == "" || line[0] == '#' {
			continue
		}
		var r ignoreRule
		if line[0] == '!' {
			r.negate, line = true, line[1:]
		}
		if strings.HasSuffix(line, "/") {
			r.dirOnly, line = true, strings.TrimRight(line, "/")
		}
		anchored := strings.Contains(line, "/")
		line = strings.TrimPrefix(line, "/")
		if line == "" {
			continue
		}
		re, bad, err := globRegexp(line, anchored)
		if err != nil {
			at := strings.Index(written, line) + bad
			return nil, &ContextError{ignoreFile, formfile.Pos{Line: i + 1, Col: 1 + utf8.RuneCountInString(written[:at])}, fmt.Sprintf("malformed pattern %q: %v", line, err)}
		}
		r.re = re
		if rules = append(rules, r); len(rules) > maxIgnoreRules {
			return nil, &ContextError{ignoreFile, formfile.Pos{Line: i + 1, Col: 1}, fmt.Sprintf("more than %d patterns", maxIgnoreRules)}
		}
	}
	return rules, nil
}

// match says whether the slash-separated path itself is ignored; the caller
// does not ask about what is below an ignored directory.
func (rs ignoreRules) match(path string, isDir bool) bool {
	ignored := false
	for _, r := range rs {
		if (!r.dirOnly || isDir) && r.re.MatchString(path) {
			ignored = !r.negate
		}
	}
	return ignored
}

// matchAny says whether path or a directory above it is ignored.
func (rs ignoreRules) matchAny(path string, isDir bool) bool {
	for i, c := range path {
		if c == '/' && rs.match(path[:i], true) {
			return true
		}
	}
	return rs.match(path, isDir)
}

// globRegexp translates one pattern. RE2 makes it linear in the path. Bad is the
// byte at which the error is.
func globRegexp(pattern string, anchored bool) (re *regexp.Regexp, bad int, err error) {
	var b strings.Builder
	b.WriteString("^")
	if !anchored {
		b.WriteString("(?:.*/)?")
	}
	for i := 0; i < len(pattern); i++ {
		rest := pattern[i:]
		atStart := i == 0 || pattern[i-1] == '/'
		switch {
		case atStart && strings.HasPrefix(rest, "**/"):
			b.WriteString("(?:.*/)?")
			i += 2
		case atStart && rest == "**":
			b.WriteString(".+")
			i++
		case pattern[i] == '*':
			b.WriteString("[^/]*")
		case pattern[i] == '?':
			b.WriteString("[^/]")
		case pattern[i] == '\\' && i+1 < len(pattern):
			i++
			b.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
		case pattern[i] == '[':
			end := strings.IndexByte(rest[1:], ']')
			if end < 1 {
				return nil, i, errors.New("this [ is not closed")
			}
			class := rest[1 : 1+end]
			neg := ""
			if class[0] == '!' || class[0] == '^' {
				neg, class = "^/", class[1:]
			}
			set := "[" + neg + strings.NewReplacer(`\`, `\\`, "[", `\[`, "^", `\^`).Replace(class) + "]"
			if _, err := regexp.Compile(set); err != nil {
				return nil, i, fmt.Errorf("%q is no set of characters", rest[:2+end])
			}
			b.WriteString(set)
			i += 1 + end
		default:
			b.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
		}
	}
	b.WriteString("$")
	re, err = regexp.Compile("(?s)" + b.String())
	return re, 0, err
}
