package p2p

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestHelloRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 300, MaxHello} {
		for _, client := range []bool{false, true} {
			var b bytes.Buffer
			want := bytes.Repeat([]byte{0xa5}, size)
			if err := writeHello(&b, want, client); err != nil {
				t.Fatal(err)
			}
			got, c, err := readHello(&b)
			if err != nil || !bytes.Equal(got, want) || c != client || b.Len() != 0 {
				t.Errorf("%d bytes, client %v: %d bytes, %v, %v", size, client, len(got), c, err)
			}
		}
	}
	if err := writeHello(&bytes.Buffer{}, make([]byte, MaxHello+1), false); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too long a hello: %v", err)
	}
}

func TestReasonIsMadeSafe(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"two\nlines\x1b[31m red": "two lines [31m red",
		"bad \xff utf-8":         "bad ? utf-8",
		strings.Repeat("é", 200): strings.Repeat("é", MaxReason/2),
	} {
		var b bytes.Buffer
		if err := writeVerdict(&b, errors.New(in)); err != nil {
			t.Fatal(err)
		}
		got, refused, err := readVerdict(&b)
		if err != nil || !refused || got != want {
			t.Errorf("%q arrives as %q, %v, %v", in, got, refused, err)
		}
	}
}

// Whatever a peer sends, reading it is bounded and ends.
func FuzzHello(f *testing.F) {
	for _, seed := range [][]byte{nil, {1, 0, 0, 0}, {1, 1, 0, 2, 'h', 'i'}, {1, 0, 0xff, 0xff}, {2, 0, 0, 0}, {2, 0, 3, 'n', 'o', 0x1b}} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if hello, client, err := readHello(bytes.NewReader(b)); err == nil {
			if len(hello) > MaxHello {
				t.Fatalf("a hello of %d bytes", len(hello))
			}
			var again bytes.Buffer
			if err := writeHello(&again, hello, client); err != nil {
				t.Fatal(err)
			}
			if back, c, err := readHello(&again); err != nil || c != client || !bytes.Equal(back, hello) {
				t.Fatalf("does not come back: %v", err)
			}
		}
		if reason, _, err := readVerdict(bytes.NewReader(b)); err == nil {
			if len(reason) > MaxReason || !utf8.ValidString(reason) || strings.ContainsAny(reason, "\n\r\x1b\x00") {
				t.Fatalf("reason %q", reason)
			}
		}
	})
}
