package formfile

import (
	"fmt"
	"sort"
	"strings"
)

// Error is one thing wrong with a Formfile. Line and Col are 1-based and point
// at the offending word, or at the instruction when the line as a whole is
// wrong. Hint, when not empty, says what to write instead.
type Error struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`
	Msg  string `json:"message"`
	Hint string `json:"hint,omitempty"`
}

// Error gives FILE:LINE:COL: message, without the hint.
func (e *Error) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Col, e.Msg)
}

// ErrorList is every error of one file, sorted by position; Parse returns it
// as its error (use errors.As).
type ErrorList []*Error

// Error gives one line an error, each followed by its hint on a line of its
// own.
func (l ErrorList) Error() string {
	var b strings.Builder
	for i, e := range l {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
		if e.Hint != "" {
			b.WriteString("\nhint: " + e.Hint)
		}
	}
	return b.String()
}

// Warning is something that works but is probably not what its author wants.
type Warning struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`
	Msg  string `json:"message"`
}

// String gives FILE:LINE:COL: warning: message.
func (w *Warning) String() string {
	return fmt.Sprintf("%s:%d:%d: warning: %s", w.File, w.Line, w.Col, w.Msg)
}

func (l ErrorList) sort() {
	sort.SliceStable(l, func(i, j int) bool {
		if l[i].Line != l[j].Line {
			return l[i].Line < l[j].Line
		}
		return l[i].Col < l[j].Col
	})
}
