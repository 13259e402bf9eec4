package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// Exit codes of form and formd.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitUnreachable = 4
	ExitNotAllowed  = 5
	ExitTimeout     = 6
)

// Problem is an application/problem+json error (RFC 9457) with the exit code
// the command line should end with and, where there is one, a hint that names
// the next thing to do.
type Problem struct {
	Type   string `json:"type"`  // about:blank: Title says it all
	Title  string `json:"title"` // the status text
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Exit   int    `json:"exit"`
	Hint   string `json:"hint,omitempty"`
	// Nodes names the nodes to ask instead, when this one cannot answer.
	Nodes []string `json:"nodes,omitempty"`
}

// Error is the detail, or the title when there is none.
func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return p.Title
}

// Problemf makes a Problem of an exit code; the HTTP status follows from it.
func Problemf(exit int, format string, args ...any) *Problem {
	status := http.StatusInternalServerError
	switch exit {
	case ExitUsage:
		status = http.StatusBadRequest
	case ExitNotFound:
		status = http.StatusNotFound
	case ExitUnreachable:
		status = http.StatusBadGateway
	case ExitNotAllowed:
		status = http.StatusForbidden
	case ExitTimeout:
		status = http.StatusGatewayTimeout
	}
	return &Problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status,
		Detail: fmt.Sprintf(format, args...), Exit: exit,
	}
}

// MethodProblem is the Problem of a method that an address does not take.
func MethodProblem(format string, args ...any) *Problem {
	p := Problemf(ExitUsage, format, args...)
	p.Status, p.Title = http.StatusMethodNotAllowed, http.StatusText(http.StatusMethodNotAllowed)
	return p
}

// WithHint returns a copy of p with a hint.
func (p *Problem) WithHint(hint string) *Problem {
	q := *p
	q.Hint = hint
	return &q
}

// ExitOf is the exit code of an error: a Problem's own, else ExitFailed; nil is
// ExitOK.
func ExitOf(err error) int {
	if err == nil {
		return ExitOK
	}
	var p *Problem
	if errors.As(err, &p) && p.Exit != 0 {
		return p.Exit
	}
	return ExitFailed
}

// asProblem turns any error into what is sent.
func asProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		q := Problemf(ExitUsage, "the body is over %d bytes", tooBig.Limit)
		q.Status, q.Title = http.StatusRequestEntityTooLarge, http.StatusText(http.StatusRequestEntityTooLarge)
		return q
	}
	var slow net.Error
	if errors.As(err, &slow) && slow.Timeout() && !errors.Is(err, context.DeadlineExceeded) {
		q := Problemf(ExitTimeout, "the request did not come in time")
		q.Status, q.Title = http.StatusRequestTimeout, http.StatusText(http.StatusRequestTimeout)
		return q
	}
	return Problemf(ExitFailed, "%v", err)
}

// WriteProblem answers with an error as application/problem+json.
func WriteProblem(w http.ResponseWriter, err error) {
	p := asProblem(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	// The peer may be gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(p)
}
