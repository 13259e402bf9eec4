package formfile

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// A line is one logical line: physical lines joined at their continuations.
// text is what remains without the backslashes and line ends; segs says where
// each piece of it came from.
type line struct {
	text string
	segs []seg

	// The last place asked for, from which a later one in the same seg is found:
	// words are asked for in order, so finding all of them reads a line once.
	seg, off, col int
	read          int // bytes read to find places, for the tests
}

// A seg is the piece of text that starts at byte off and came from pos.
type seg struct {
	off int
	pos Pos
}

// pos is the place in the file of the byte at off.
func (l *line) pos(off int) Pos {
	i := sort.Search(len(l.segs)-1, func(i int) bool { return l.segs[i+1].off > off })
	s := l.segs[i]
	off = min(off, len(l.text))
	if l.seg != i || l.off > off || l.col == 0 {
		l.seg, l.off, l.col = i, s.off, s.pos.Col
	}
	l.read += off - l.off
	l.col += utf8.RuneCountInString(l.text[l.off:off])
	l.off = off
	return Pos{s.pos.Line, l.col}
}

// A word is one argument of an instruction.
type word struct {
	text string // quotes removed
	raw  string // as written
	off  int    // byte in the line
}

// at is where, in the line, the first i bytes of w's text end: quotes and the
// backslashes in them take room there.
func (w *word) at(i int) int {
	quoted, j := false, 0
	for ; i > 0 && j < len(w.raw); j++ {
		switch {
		case w.raw[j] == '"':
			quoted = !quoted
			continue
		case quoted && w.raw[j] == '\\' && j+1 < len(w.raw) && (w.raw[j+1] == '"' || w.raw[j+1] == '\\'):
			j++
		}
		i--
	}
	return w.off + j
}

// cut is w without the first i bytes of its text.
func (w *word) cut(i int) word {
	at := w.at(i)
	return word{w.text[i:], w.raw[at-w.off:], at}
}

// A draft is a line while its physical lines are joined.
type draft struct {
	line
	b   strings.Builder
	bad bool // a part was not text, which has been said
}

// splitLines cuts src into logical lines, without blank and comment lines.
// Comment lines inside a continued instruction are dropped, as in a Dockerfile.
func (p *parser) splitLines(src string) []line {
	var out []line
	var cur *draft
	end := func() {
		if cur.text = cur.b.String(); !cur.bad {
			out = append(out, cur.line)
		}
		cur = nil
	}
	lastNo := 0
	for no := 1; src != "" && !p.full(); no++ {
		phys, rest, _ := strings.Cut(src, "\n")
		src, lastNo = rest, no
		phys = strings.TrimSuffix(phys, "\r")
		isText := p.checkChars(phys, no)
		trimmed := strings.TrimSpace(phys)
		if strings.HasPrefix(trimmed, "#") {
			continue
		}
		if trimmed == "" {
			if cur != nil {
				p.errorf(Pos{no, 1}, "the instruction goes on after \\, but this line is empty").
					hint("remove the backslash at the end of the line above")
				end()
			}
			continue
		}
		body, more := cutContinuation(phys)
		start := 0
		if cur == nil {
			cur = &draft{}
			start = len(body) - len(strings.TrimLeft(body, " \t"))
		}
		p.add(cur, body[start:], Pos{no, 1 + start})
		cur.bad = cur.bad || !isText
		if !more {
			end()
		}
	}
	if cur != nil {
		p.errorf(Pos{lastNo, 1}, "the file ends after \\, in the middle of an instruction").
			hint("remove the backslash at the end of the last line")
		end()
	}
	return out
}

// add joins one physical line to a logical one.
func (p *parser) add(d *draft, body string, at Pos) {
	if d.bad {
		return
	}
	d.segs = append(d.segs, seg{d.b.Len(), at})
	d.b.WriteString(body)
	if d.b.Len() > MaxLineBytes {
		p.errorf(d.segs[0].pos, "the instruction is longer than %d bytes", MaxLineBytes)
		d.bad = true
	}
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

// checkEncoding reports, once, a file that is no text of lines as a whole.
func (p *parser) checkEncoding(src string) bool {
	if strings.HasPrefix(src, "\xff\xfe") || strings.HasPrefix(src, "\xfe\xff") {
		p.errorf(Pos{1, 1}, "the file is UTF-16").hint("save the file as UTF-8 text")
		return false
	}
	if i := strings.IndexByte(src, '\r'); i >= 0 && !strings.Contains(src, "\n") && i < len(src)-1 {
		p.errorf(Pos{1, 1 + utf8.RuneCountInString(src[:i])}, "lines end with CR alone").hint("save the file with LF, or CR LF, line ends")
		return false
	}
	return true
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
		w, end, ok := p.word(l, i)
		if !ok {
			return nil, false
		}
		if ws = append(ws, w); len(ws) > MaxWords {
			p.errorf(l.pos(i), "an instruction of more than %d words", MaxWords)
			return nil, false
		}
		i = end
	}
	return ws, true
}

// word reads the word at byte i, up to end.
func (p *parser) word(l *line, i int) (w word, end int, ok bool) {
	s, start := l.text, i
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
			return word{}, 0, false
		}
		i = end
	}
	return word{b.String(), s[start:i], start}, i, true
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
