package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	"github.com/hashicorp/yamux"
	"pgregory.net/rapid"
)

// muxFrame is one frame of the multiplexed stream.
func muxFrame(kind byte, flags uint16, stream, length uint32, body []byte) []byte {
	h := []byte{0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], stream)
	binary.BigEndian.PutUint32(h[8:], length)
	return append(h, body...)
}

type readOnly struct{ io.Reader }

func (readOnly) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
func (readOnly) Close() error              { return nil }

// TestGuard: however a stream is cut, an agent's frames pass unchanged and the
// first one that no agent sends ends it, also when data looks like one.
func TestGuard(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		for range rapid.IntRange(0, 8).Draw(t, "frames") {
			body := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 2, 3}), 0, 60).Draw(t, "body")
			flags := rapid.SampledFrom([]uint16{0, 2, 4, 8}).Draw(t, "flags")
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				stream = append(stream, muxFrame(0, flags, 1, uint32(len(body)), body)...)
			case 1:
				stream = append(stream, muxFrame(1, flags, 1, rapid.Uint32().Draw(t, "window"), nil)...)
			case 2:
				stream = append(stream, muxFrame(3, 0, 0, 0, nil)...)
			}
		}
		honest := len(stream)
		hostile := rapid.SampledFrom([][]byte{nil, muxFrame(2, 1, 0, 9, nil), muxFrame(2, 2, 0, 9, nil), muxFrame(1, 1, 2, 0, nil), muxFrame(0, 3, 2, 1, []byte{0})}).Draw(t, "hostile")
		stream = append(stream, hostile...)
		var in io.Reader = bytes.NewReader(stream)
		if rapid.Bool().Draw(t, "bytewise") {
			in = iotest.OneByteReader(in)
		}
		got, err := io.ReadAll(&muxGuard{ReadWriteCloser: readOnly{in}})
		if (err != nil) != (hostile != nil) || err != nil && !errors.Is(err, ErrFrame) {
			t.Fatalf("error %v", err)
		}
		if !bytes.HasPrefix(stream, got) || len(got) > honest+muxHeader-1 || hostile == nil && len(got) != honest {
			t.Fatalf("%d bytes of %d honest ones", len(got), honest)
		}
	})
}

// TestFloods: neither pings nor streams of a guest that reads nothing cost the
// host more than the channel.
func TestFloods(t *testing.T) {
	for name, frame := range map[string][]byte{"pings": muxFrame(2, 1, 0, 1, nil), "streams": muxFrame(1, 1, 2, 0, nil)} {
		t.Run(name, func(t *testing.T) {
			host, guest := net.Pipe()
			defer guest.Close()
			connected := make(chan struct{})
			go func() {
				if _, err := guest.Write(preamble()); err != nil || readPreamble(guest) != nil {
					return
				}
				// What the host opens its control stream with is read, and
				// nothing after it.
				var hello bytes.Buffer
				if writeJSON(&hello, toHost{Hello: &Info{Version: Version}}) != nil {
					return
				}
				var head [muxHeader]byte
				for head[1] = 1; head[1] != muxData; {
					if _, err := io.ReadFull(guest, head[:]); err != nil {
						return
					}
				}
				if _, err := io.CopyN(io.Discard, guest, int64(binary.BigEndian.Uint32(head[8:]))); err != nil {
					return
				}
				if _, err := guest.Write(muxFrame(0, 2, 1, uint32(hello.Len()), hello.Bytes())); err != nil {
					return
				}
				<-connected
				for range 100_000 {
					if _, err := guest.Write(frame); err != nil {
						return
					}
				}
			}()
			c, err := Connect(t.Context(), host)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			close(connected)
			before := runtime.NumGoroutine()
			ended := make(chan error, 1)
			go func() { ended <- c.Run(t.Context(), func(Status, error) {}) }()
			select {
			case err := <-ended:
				if err == nil {
					t.Error("no error")
				}
			case <-time.After(10 * time.Second):
				t.Error("the flood goes on")
			}
			if more := runtime.NumGoroutine() - before; more > 10 {
				t.Errorf("%d goroutines more", more)
			}
		})
	}
}

// TestGuardedSession: what the multiplexer itself sends in an ordinary life
// passes.
func TestGuardedSession(t *testing.T) {
	host, guest := net.Pipe()
	server, err := yamux.Server(guest, muxConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := yamux.Client(&muxGuard{ReadWriteCloser: host}, hostMuxConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	go func() {
		for {
			s, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer s.Close()
				_, _ = io.Copy(s, s)
			}()
		}
	}()
	data := bytes.Repeat([]byte("0123456789abcdef"), 100_000) // several windows
	for range 3 {
		s, err := client.Open()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = s.Write(data) }()
		got := make([]byte, len(data))
		if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("echo: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
