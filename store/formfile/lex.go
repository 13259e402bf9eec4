package formfile

import (
	"strings"
	"unicode/utf8"
)

// A line is one logical line: physical lines joined at their continuations.
// text is what remains without the backslashes and line ends; segs says where
// each piece of it came from.
type line struct {
	text string
	segs []seg
}

// A seg is the piece of text that starts at byte off and came from pos.
type seg struct {
	off int
	pos Pos
}

// pos is the place in the file of the byte at off.
func (l *line) pos(off int) Pos {
	s := l.segs[0]
	for _, c := range l.segs[1:] {
		if c.off > off {
			break
		}
		s = c
	}
	off = min(off, len(l.text))
	return Pos{s.pos.Line, s.pos.Col + utf8.RuneCountInString(l.text[s.off:off])}
}

// A word is one argument of an instruction.
type word struct {
	text string // quotes removed
	raw  string // as written
	off  int    // byte in the line
}

// splitLines cuts src into logical lines, without blank and comment lines.
// Comment lines inside a continued instruction are dropped, as in a Dockerfile.
func (p *parser) splitLines(src string) []line {
	var out []line
	var cur *line
	lastNo := 0
	for no := 1; src != ""; no++ {
		phys, rest, _ := strings.Cut(src, "\n")
		src, lastNo = rest, no
		phys = strings.TrimSuffix(phys, "\r")
		if !p.checkChars(phys, no) {
			cur = nil
			continue
		}
		trimmed := strings.TrimSpace(phys)
		if strings.HasPrefix(trimmed, "#") {
			continue
		}
		if trimmed == "" {
			if cur != nil {
				p.errorf(Pos{no, 1}, "the instruction goes on after \\, but this line is empty").
					hint("remove the backslash at the end of the line above")
				cur = nil
			}
			continue
		}
		body, more := cutContinuation(phys)
		if cur == nil {
			start := len(body) - len(strings.TrimLeft(body, " \t"))
			out = append(out, line{})
			cur = &out[len(out)-1]
			cur.segs = []seg{{0, Pos{no, 1 + start}}}
			cur.text = body[start:]
		} else {
			cur.segs = append(cur.segs, seg{len(cur.text), Pos{no, 1}})
			cur.text += body
		}
		if !more {
			cur = nil
		}
	}
	if cur != nil {
		p.errorf(Pos{lastNo, 1}, "the file ends after \\, in the middle of an instruction").
			hint("remove the backslash at the end of the last line")
	}
	return out
}

// cutContinuation removes a backslash at the end of the line, blanks after it
// included.
func cutContinuation(s string) (body string, more bool) {
	t := strings.TrimRight(s, " \t")
	if strings.HasSuffix(t, `\`) {
		return t[:len(t)-1], true
	}
	return s, false
}

// checkChars reports bytes that are not text.
func (p *parser) checkChars(s string, no int) bool {
	col := 0
	for i, r := range s {
		col++
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				p.errorf(Pos{no, col}, "not UTF-8: byte 0x%02x", s[i]).hint("save the file as UTF-8 text")
				return false
			}
		}
		if r < ' ' && r != '\t' || r == 0x7f {
			p.errorf(Pos{no, col}, "control character U+%04X", r)
			return false
		}
	}
	return true
}

// words splits text[off:] at blanks. Double quotes group, anywhere in a word;
// inside them \" and \\ stand for a quote and a backslash.
func (p *parser) words(l *line, off int) (ws []word, ok bool) {
	s := l.text
	for i := off; i < len(s); {
		if s[i] == ' ' || s[i] == '\t' {
			i++
			continue
		}
		start := i
		var b strings.Builder
		for i < len(s) && s[i] != ' ' && s[i] != '\t' {
			if s[i] != '"' {
				b.WriteByte(s[i])
				i++
				continue
			}
			end, ok := unquote(s, i, &b)
			if !ok {
				p.errorf(l.pos(i), "this double quote is not closed").hint(`write \" for a quote inside quotes`)
				return nil, false
			}
			i = end
		}
		ws = append(ws, word{b.String(), s[start:i], start})
	}
	return ws, true
}

// unquote copies the quoted text that starts at s[i] to b and returns the
// index after the closing quote.
func unquote(s string, i int, b *strings.Builder) (end int, ok bool) {
	for i++; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return i + 1, true
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return i, false
}
