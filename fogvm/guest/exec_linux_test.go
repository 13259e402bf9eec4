package guest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// endless is input without an end; it says when more has been read of it than a
// pipe and the relays before it hold.
type endless struct {
	read int
	much chan struct{}
}

func newEndless() *endless { return &endless{much: make(chan struct{})} }

func (e *endless) Read(p []byte) (int, error) {
	const enough = 128 << 10
	if e.read <= enough && e.read+len(p) > enough {
		close(e.much)
	}
	e.read += len(p)
	return len(p), nil
}

// execOn runs a command as the agent does and returns the client's end, and a
// channel that closes when nothing of the command is left.
func execOn(t *testing.T, argv ...string) (client net.Conn, ended <-chan struct{}) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("children get credentials set, which needs root, as in the guest")
	}
	a := newAgent(slog.New(slog.DiscardHandler), nil)
	a.procs = reaping(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	client, stream := net.Pipe()
	go func() {
		defer close(done)
		defer stream.Close()
		a.exec(ctx, ExecRequest{Argv: argv, Workdir: "/"}, stream)
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
		cancel()
	})
	return client, done
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("not within 10 s: %s", what)
	}
}

func TestExecPassesInput(t *testing.T) {
	client, _ := execOn(t, "sha256sum")
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, many windows
	var out bytes.Buffer
	code, err := RunExec(t.Context(), client, ExecIO{Stdin: bytes.NewReader(input), Stdout: &out, Stderr: io.Discard})
	want := sha256.Sum256(input)
	if err != nil || code != 0 || !bytes.HasPrefix(out.Bytes(), []byte(hex.EncodeToString(want[:]))) {
		t.Errorf("code %d, %v, %q", code, err, out.String())
	}
}

// TestExecThatDoesNotRead: a command that leaves its input lying about still
// gets signals, and ends with its client.
func TestExecThatDoesNotRead(t *testing.T) {
	t.Run("a signal", func(t *testing.T) {
		client, ended := execOn(t, "sleep", "9999")
		input, signals := newEndless(), make(chan byte)
		go func() {
			<-input.much
			signals <- byte(syscall.SIGINT)
		}()
		code, err := RunExec(t.Context(), client, ExecIO{Stdin: input, Stdout: io.Discard, Stderr: io.Discard, Signals: signals})
		if err != nil || code != 128+int(syscall.SIGINT) {
			t.Errorf("code %d, %v", code, err)
		}
		within(t, "the end", ended)
	})
	t.Run("the client leaves", func(t *testing.T) {
		client, ended := execOn(t, "sleep", "9999")
		input := newEndless()
		ctx, leave := context.WithCancel(t.Context())
		go func() {
			<-input.much
			leave()
		}()
		if _, err := RunExec(ctx, client, ExecIO{Stdin: input, Stdout: io.Discard, Stderr: io.Discard}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		within(t, "the command's end", ended)
	})
	t.Run("a client that keeps to no window", func(t *testing.T) {
		client, ended := execOn(t, "sleep", "9999")
		go func() { _, _ = io.Copy(io.Discard, client) }()
		sent := 0
		for WriteFrame(client, FrameStdin, make([]byte, MaxFrame)) == nil {
			if sent += MaxFrame; sent > 4*stdinWindow {
				t.Fatal("the guest keeps all of it")
			}
		}
		within(t, "the command's end", ended)
	})
}

// TestWindow: whatever is sent and taken, in whatever pieces, arrives in order,
// and never is more under way than the window.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		window, box, done := newCredit(), newInbox(), make(chan struct{})
		pieces := rapid.SliceOfN(rapid.IntRange(1, MaxFrame), 1, 40).Draw(t, "pieces")
		var sent, got []byte
		copied := make(chan struct{})
		go func() {
			defer close(copied)
			box.copyTo(writeTo(func(p []byte) { got = append(got, p...) }), func(cost int) error {
				window.give(uint32(cost))
				return nil
			})
		}()
		for i, want := range pieces {
			size := window.take(done)
			n := min(size, want)
			window.give(uint32(size - n))
			chunk := bytes.Repeat([]byte{byte(i)}, n)
			sent = append(sent, chunk...)
			if !box.put(chunk) {
				t.Fatal("within the window, and refused")
			}
		}
		box.end()
		<-copied
		if !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes of %d", len(got), len(sent))
		}
		if window.left != stdinWindow {
			t.Fatalf("credit %d at the end", window.left)
		}
	})
}

type writeTo func([]byte)

func (f writeTo) Write(p []byte) (int, error) {
	f(p)
	return len(p), nil
}
