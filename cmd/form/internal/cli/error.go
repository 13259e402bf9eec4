// Package cli is how form speaks: one printer for answers and talk, and one
// error type that carries text, exit code and hints.
//
// Rules: stdout is the answer and nothing else; stderr is the talk; progress is
// drawn only on a terminal; --json changes the form of the answer, never its
// content; an error says what to do next.
package cli

import (
	"fmt"
)

// Error is an error made for the person at the keyboard.
type Error struct {
	Code  int      // exit code, one of api.Exit*
	Text  string   // one sentence without a final stop; may have several lines
	Hints []string // commands or changes that help, most likely first
	Err   error    // the cause, may be nil; not printed
}

func (e *Error) Error() string { return e.Text }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error with an exit code. A %w verb sets the cause.
func Errorf(code int, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	e := &Error{Code: code, Text: err.Error()}
	if u, ok := err.(interface{ Unwrap() error }); ok {
		e.Err = u.Unwrap()
	}
	return e
}

// Hint adds a hint and returns e.
func (e *Error) Hint(format string, args ...any) *Error {
	e.Hints = append(e.Hints, fmt.Sprintf(format, args...))
	return e
}

// ExitStatus ends the program with a status and prints nothing: the program it
// stands for (ssh, a command in a guest) has said all there is to say.
type ExitStatus int

func (s ExitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }
