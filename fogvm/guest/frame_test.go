package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := FrameType(rapid.IntRange(1, 10).Draw(t, "type"))
		low, high, _ := frameLimits(kind)
		payload := rapid.SliceOfN(rapid.Byte(), low, min(high, low+2000)).Draw(t, "payload")
		var b bytes.Buffer
		if err := WriteFrame(&b, kind, payload); err != nil {
			t.Fatal(err)
		}
		got, data, err := ReadFrame(&b)
		if err != nil || got != kind || !bytes.Equal(data, payload) || b.Len() != 0 {
			t.Fatalf("type %d, %d bytes, %v, %d left", got, len(data), err, b.Len())
		}
	})
}

func TestFrameBounds(t *testing.T) {
	head := func(kind byte, size uint32) []byte { return binary.BigEndian.AppendUint32([]byte{kind}, size) }
	for name, in := range map[string][]byte{
		"unknown type":       head(0, 0),
		"another unknown":    head(200, 4),
		"stdout over limit":  head(byte(FrameStdout), MaxFrame+1),
		"message over limit": head(byte(FrameJSON), MaxConfigBytes+1),
		"4 GiB":              head(byte(FrameStdin), 1<<32-1),
		"short exit code":    append(head(byte(FrameExit), 3), 0, 0, 0),
		"eof with a body":    append(head(byte(FrameEOF), 1), 0),
		"torn header":        {2, 0, 0},
		"torn payload":       append(head(byte(FrameStdin), 9), "four"...),
	} {
		if _, _, err := ReadFrame(bytes.NewReader(in)); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := ReadFrame(bytes.NewReader(nil)); err != io.EOF {
		t.Errorf("clean end: %v", err)
	}
	if err := WriteFrame(io.Discard, FrameStdout, make([]byte, MaxFrame+1)); !errors.Is(err, ErrFrame) {
		t.Errorf("oversized write: %v", err)
	}
}

// FuzzFrames: whatever arrives, reading ends without a panic, never yields a
// payload over its type's bound, and what it accepts encodes to what was read.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 0, 0, 0, 2, 'h', 'i', 5, 0, 0, 0, 0})
	f.Add([]byte{8, 0, 0, 0, 4, 0, 0, 0, 7})
	f.Add([]byte{1, 0, 0, 0, 2, '{', '}'})
	f.Add([]byte{3, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var again bytes.Buffer
		for {
			kind, payload, err := ReadFrame(r)
			if err != nil {
				break
			}
			if _, high, ok := frameLimits(kind); !ok || len(payload) > high {
				t.Fatalf("type %d with %d bytes", kind, len(payload))
			}
			if err := WriteFrame(&again, kind, payload); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(in, again.Bytes()) {
			t.Fatal("re-encoding differs from the input")
		}
	})
}

// Whatever opens the channel, only the preamble of this version is one; a window
// size comes back as it was sent.
func FuzzPreamble(f *testing.F) {
	f.Add(preamble())
	f.Add(append(preamble()[:len(preamble())-1], 0xff))
	f.Add([]byte("formation"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := readPreamble(bytes.NewReader(b)); (err == nil) != bytes.HasPrefix(b, preamble()) {
			t.Fatalf("%q: %v", b, err)
		}
		if len(b) == 4 && !bytes.Equal(encodeSize(decodeSize(b)), b) {
			t.Fatalf("%x does not come back", b)
		}
	})
}
