package embedded_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/formthefog/formation/wg/embedded"
)

// sink is a TUN device that keeps what is written, by its last byte.
type sink struct {
	tun.Device
	got string
}

func (s *sink) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		s.got += fmt.Sprint(b[len(b)-1], " ")
	}
	return len(bufs), nil
}

func packet(to string, mark byte) []byte {
	a := netip.MustParseAddr(to)
	b := make([]byte, 3+41)
	p := b[3:]
	if a.Is4() {
		p[0] = 0x45
		copy(p[16:], a.AsSlice())
	} else {
		p[0] = 0x60
		copy(p[24:], a.AsSlice())
	}
	p[40] = mark
	return b
}

func TestOnlyOwnAddresses(t *testing.T) {
	own4, own6, lan := packet("10.129.0.1", 1), packet("fd00::1", 2), packet("192.168.0.7", 3)
	broken := []byte{0, 0, 0, 0x45, 1}
	for _, tt := range []struct {
		bufs [][]byte
		want string
	}{
		{[][]byte{own4, own6}, "1 2 "},
		{[][]byte{lan, own4, lan, own6, broken}, "1 2 "},
		{[][]byte{own4, packet("fd00::2", 4)}, "1 "},
		{[][]byte{lan}, ""},
		{[][]byte{broken, {0, 0, 0}}, ""},
	} {
		s := &sink{}
		o := &embedded.Only{Device: s}
		if n, err := o.Write(tt.bufs, 3); n != len(tt.bufs) || err != nil || s.got != "" {
			t.Errorf("before Set: %q written, %d, %v", s.got, n, err)
		}
		o.Set([]netip.Addr{netip.MustParseAddr("10.129.0.1"), netip.MustParseAddr("fd00::1")})
		if n, err := o.Write(tt.bufs, 3); n != len(tt.bufs) || err != nil || s.got != tt.want {
			t.Errorf("%q written, want %q (%d, %v)", s.got, tt.want, n, err)
		}
	}
}
