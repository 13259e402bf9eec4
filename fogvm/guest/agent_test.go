package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// echoGuest is a handler that remembers what it was told.
type echoGuest struct {
	mu    sync.Mutex
	got   []toGuest
	told  chan struct{}
	heard int // statements
}

func (e *echoGuest) control(m toGuest) {
	e.mu.Lock()
	e.got = append(e.got, m)
	e.mu.Unlock()
	e.told <- struct{}{}
}

// exec echoes stdin frames to stdout until their end, then exits with 3.
func (e *echoGuest) exec(_ context.Context, req ExecRequest, stream net.Conn) {
	for {
		kind, payload, err := ReadFrame(stream)
		if err != nil {
			return
		}
		switch kind {
		case FrameStdin:
			err = errors.Join(WriteFrame(stream, FrameStdout, payload), WriteFrame(stream, FrameTaken, encodeTaken(stdinCost(len(payload)))))
		case FrameResize:
			err = WriteFrame(stream, FrameStderr, fmt.Appendf(nil, "%v", decodeSize(payload)))
		case FrameEOF:
			_ = WriteFrame(stream, FrameExit, encodeExit(3))
			return
		}
		if err != nil {
			return
		}
	}
}

func (e *echoGuest) logs(_ context.Context, w io.Writer) { _, _ = io.WriteString(w, "log line\n") }

func (e *echoGuest) news(_ context.Context, stream net.Conn) {
	for {
		n, err := ReadNews(stream)
		if err != nil {
			return
		}
		e.heard += len(n.Statements)
		if n.End {
			if WriteMeshReport(stream, MeshReport{Held: e.heard}) != nil {
				return
			}
		}
	}
}

func TestChannel(t *testing.T) {
	hostEnd, guestEnd := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	g := &echoGuest{told: make(chan struct{}, 10)}
	statuses := make(chan Status, 1)
	served := make(chan error, 1)
	go func() { served <- serve(ctx, guestEnd, Info{Version: Version, CPUs: 2}, statuses, g) }()
	c, err := Connect(ctx, hostEnd)
	if err != nil {
		t.Fatal(err)
	}
	if c.Info().CPUs != 2 {
		t.Errorf("info %+v", c.Info())
	}
	heard := make(chan Status, 1)
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx, func(s Status, _ error) { heard <- s }) }()

	statuses <- Status{Phase: PhaseReady, Reason: strings.Repeat("x", 3*MaxReason)}
	if s := <-heard; s.Phase != PhaseReady || len(s.Reason) > MaxReason {
		t.Errorf("status %s, reason of %d bytes", s.Phase, len(s.Reason))
	}
	if err := errors.Join(c.Configure(Config{Hostname: "h"}), c.Authorize([]string{"k"}), c.SetSecrets([]Secret{{Name: "S", Value: []byte{0, 255}}}), c.SetSecrets(nil), c.SetTime(time.Unix(5, 0)), c.Power(Power{Reboot: true})); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		<-g.told
	}
	if g.got[0].Config.Hostname != "h" || (*g.got[1].Authorize)[0] != "k" || !EqualSecrets(*g.got[2].Secrets, []Secret{{Name: "S", Value: []byte{0, 255}}}) || g.got[3].Secrets == nil || len(*g.got[3].Secrets) != 0 ||
		g.got[4].Time != 5e9 || !g.got[5].Power.Reboot {
		t.Errorf("guest heard %+v", g.got)
	}

	logs, err := c.Logs()
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(logs); err != nil || string(data) != "log line\n" {
		t.Errorf("logs %q, %v", data, err)
	}

	stream, err := c.Exec(ExecRequest{Argv: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	input := bytes.Repeat([]byte("0123456789"), 20000)
	var out, stderr bytes.Buffer
	sizes := make(chan WindowSize, 1)
	sizes <- WindowSize{Rows: 2, Cols: 3}
	r, w := io.Pipe()
	go func() {
		for len(sizes) > 0 { // the size first: the end of stdin ends the command
			time.Sleep(time.Millisecond)
		}
		_, _ = w.Write(input)
		w.Close()
	}()
	code, err := RunExec(ctx, stream, ExecIO{Stdin: r, Stdout: &out, Stderr: &stderr, Resize: sizes})
	if err != nil || code != 3 || !bytes.Equal(out.Bytes(), input) {
		t.Errorf("exec: code %d, %v, %d bytes", code, err, out.Len())
	}
	if _, err := c.Exec(ExecRequest{}); err == nil {
		t.Error("an empty command is accepted")
	}
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestConnectRefuses(t *testing.T) {
	for name, says := range map[string]string{
		"another version": "formation-guest\x07", "noise": "login: login: login: ", "nothing": "",
	} {
		host, guest := net.Pipe()
		go func() {
			_, _ = io.WriteString(guest, says)
			guest.Close()
		}()
		if _, err := Connect(t.Context(), host); err == nil {
			t.Errorf("%s: connected", name)
		}
	}
}

func TestConnectEndsWithItsContext(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Connect(ctx, host); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestVerdict(t *testing.T) {
	now := time.Unix(1000, 0)
	failing := errors.New("tcp port 80 does not accept connections")
	up := appEvent{running: true, since: now.Add(-time.Second)}
	long := appEvent{running: true, since: now.Add(-time.Minute)}
	for _, c := range []struct {
		name   string
		c      condition
		phase  Phase
		reason string
	}{
		{"not configured", condition{}, PhaseStarting, ""},
		{"bad configuration", condition{configured: true, configErr: failing}, PhaseFailed, failing.Error()},
		{"no app, no check", condition{configured: true, app: long}, PhaseReady, ""},
		{"app before its start", condition{configured: true, hasApp: true}, PhaseStarting, ""},
		{"app up for a second", condition{configured: true, hasApp: true, app: up}, PhaseStarting, ""},
		{"app up for a minute", condition{configured: true, hasApp: true, app: long}, PhaseReady, ""},
		{"check has not answered", condition{configured: true, hasApp: true, app: long, hasCheck: true}, PhaseStarting, ""},
		{"check passes at once", condition{configured: true, hasApp: true, app: up, hasCheck: true, checked: true}, PhaseReady, ""},
		{"check fails, never ready", condition{configured: true, hasApp: true, app: long, hasCheck: true, checked: true, checkErr: failing}, PhaseStarting, "waiting: " + failing.Error()},
		{"check fails, was ready", condition{configured: true, hasApp: true, app: long, hasCheck: true, checked: true, checkErr: failing, wasReady: true}, PhaseUnhealthy, failing.Error()},
		{"between restarts", condition{configured: true, hasApp: true, app: appEvent{reason: "exited"}}, PhaseUnhealthy, "exited"},
		{"just restarted", condition{configured: true, hasApp: true, app: appEvent{running: true, since: now, restarts: 2}, lastExit: "exited"}, PhaseUnhealthy, "exited"},
		{"gave up", condition{configured: true, hasApp: true, app: appEvent{failed: true, reason: "code 2"}}, PhaseFailed, "code 2"},
		{"a job that is done", condition{configured: true, hasApp: true, app: appEvent{done: true, reason: "code 0"}}, PhaseReady, "code 0"},
		{"stopping wins", condition{configured: true, stopping: true, configErr: failing}, PhaseStopping, ""},
	} {
		s, recheck := c.c.verdict(now)
		if s.Phase != c.phase || s.Reason != c.reason {
			t.Errorf("%s: %s %q, want %s %q", c.name, s.Phase, s.Reason, c.phase, c.reason)
		}
		if wants := c.c.hasApp && !c.c.hasCheck && c.c.app.running && now.Sub(c.c.app.since) < settleTime && c.c.configured; wants != (recheck > 0) {
			t.Errorf("%s: recheck %s", c.name, recheck)
		}
	}
}

func TestAfterExit(t *testing.T) {
	for _, c := range []struct {
		policy         string
		code, failures int
		again          bool
		delay          time.Duration
	}{
		{RestartNever, 1, 1, false, 0}, {RestartNever, 0, 1, false, 0},
		{RestartOnFailure, 0, 1, false, 0}, {RestartOnFailure, 1, 1, true, time.Second},
		{RestartAlways, 0, 1, true, time.Second}, {"", 3, 3, true, 4 * time.Second},
		{RestartAlways, 1, 1000, true, maxBackoff},
	} {
		again, delay := afterExit(c.policy, c.code, c.failures)
		if again != c.again || delay != c.delay {
			t.Errorf("afterExit(%q, %d, %d) = %v, %s", c.policy, c.code, c.failures, again, delay)
		}
	}
}

// TestWatchHealth: quick until the first success, then patient, and only
// retries failures in a row count.
func TestWatchHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := errors.New("no")
		script := []error{bad, bad, nil, nil, bad, nil, bad, bad, bad, nil}
		type answer struct {
			at  time.Duration
			err error
		}
		var got []answer
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		i := 0
		c := &check{interval: 10 * time.Second, timeout: time.Second, retries: 3, probe: func(context.Context) error {
			if i++; i == len(script) {
				cancel()
			}
			return script[i-1]
		}}
		watchHealth(ctx, c, func(err error) { got = append(got, answer{time.Since(start), err}) })
		want := []answer{
			{0, bad}, {200 * time.Millisecond, bad}, {600 * time.Millisecond, nil}, {10600 * time.Millisecond, nil},
			// 20.6 s: one failure is no verdict; 21.6 s: well again.
			{21600 * time.Millisecond, nil},
			// 31.6, 32.6 and 34.6 s fail: the third is the verdict.
			{34600 * time.Millisecond, bad},
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	})
}

func TestHTTPProbe(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/ok?x=1" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	for path, want := range map[string]string{"/ok?x=1": "", "/": "503 Service Unavailable"} {
		u, err := healthURL(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		err = httpProbe(t.Context(), u)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for target, want := range map[string]string{
		"8080": "http://127.0.0.1:8080/", "8080/health": "http://127.0.0.1:8080/health", ":90/x": "http://127.0.0.1:90/x",
		"/x": "http://127.0.0.1/x", "http://h/y": "http://h/y", "ftp": "", "70000": "", "https://h": "",
	} {
		u, err := healthURL(target)
		if (err != nil) != (want == "") || err == nil && u.String() != want {
			t.Errorf("healthURL(%q) = %v, %v", target, u, err)
		}
	}
}

// TestRing: what comes out is what went in, less a counted oldest part.
func TestRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 50).Draw(t, "limit")
		r := newRing(limit)
		var all []byte
		for _, chunk := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 40), 0, 8).Draw(t, "chunks") {
			if _, err := r.Write(chunk); err != nil {
				t.Fatal(err)
			}
			all = append(all, chunk...)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		var out bytes.Buffer
		if err := r.copyTo(ctx, &out); err != nil {
			t.Fatal(err)
		}
		want := string(all)
		if over := len(all) - limit; over > 0 {
			want = fmt.Sprintf("[%d bytes of output dropped]\n", over) + string(all[over:])
		}
		if out.String() != want {
			t.Fatalf("got %q, want %q", out.String(), want)
		}
	})
}
