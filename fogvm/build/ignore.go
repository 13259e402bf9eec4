package build

import (
	"fmt"
	"regexp"
	"strings"
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
		return nil, fmt.Errorf("%s is larger than %d bytes", ignoreFile, maxIgnoreBytes)
	}
	var rules ignoreRules
	for i, line := range strings.Split(src, "\n") {
		line = strings.TrimSuffix(line, "\r")
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
		re, err := globRegexp(line, anchored)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: malformed pattern %q", ignoreFile, i+1, line)
		}
		r.re = re
		if rules = append(rules, r); len(rules) > maxIgnoreRules {
			return nil, fmt.Errorf("%s has more than %d patterns", ignoreFile, maxIgnoreRules)
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

// globRegexp translates one pattern. RE2 makes it linear in the path.
func globRegexp(pattern string, anchored bool) (*regexp.Regexp, error) {
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
				return nil, fmt.Errorf("unclosed [ in %q", pattern)
			}
			class := rest[1 : 1+end]
			neg := ""
			if class[0] == '!' || class[0] == '^' {
				neg, class = "^/", class[1:]
			}
			b.WriteString("[" + neg + strings.NewReplacer(`\`, `\\`, "[", `\[`, "^", `\^`).Replace(class) + "]")
			i += 1 + end
		default:
			b.WriteString(regexp.QuoteMeta(pattern[i : i+1]))
		}
	}
	b.WriteString("$")
	return regexp.Compile("(?s)" + b.String())
}
