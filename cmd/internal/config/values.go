package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// Size is a number of bytes. Its text is a whole number with an optional
// binary unit K, M, G or T; a bare number is bytes.
type Size uint64

// ParseSize reads a Size; it refuses signs, fractions and overflow.
func ParseSize(s string) (Size, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	t = strings.TrimSuffix(t, "IB")
	if len(t) > 1 && t[len(t)-1] == 'B' {
		t = t[:len(t)-1]
	}
	shift := 0
	if n := len(t); n > 0 {
		if i := strings.IndexByte("KMGT", t[n-1]); i >= 0 {
			shift, t = 10*(i+1), t[:n-1]
		}
	}
	v, err := strconv.ParseUint(t, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size such as 512M or 4G", s)
	}
	if v > math.MaxUint64>>shift {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return Size(v << shift), nil
}

// String is the shortest exact text.
func (s Size) String() string {
	units := "TGMK"
	for i, u := range units {
		unit := Size(1) << (10 * (len(units) - i))
		if s >= unit && s%unit == 0 {
			return fmt.Sprintf("%d%c", s/unit, u)
		}
	}
	return strconv.FormatUint(uint64(s), 10)
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSize.
func (s *Size) UnmarshalText(b []byte) error { return s.Set(string(b)) }

// Set is ParseSize, for flags.
func (s *Size) Set(v string) error {
	p, err := ParseSize(v)
	if err == nil {
		*s = p
	}
	return err
}

// Type names the value in a flag's help.
func (s *Size) Type() string { return "size" }

// Duration is a time.Duration in Go's notation, or a bare number of seconds.
type Duration time.Duration

// ParseDuration reads a Duration.
func ParseDuration(s string) (Duration, error) {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		if math.IsNaN(n) || math.Abs(n) > 1e9 {
			return 0, fmt.Errorf("%q is too long", s)
		}
		return Duration(n * float64(time.Second)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration such as 10s or 5m", s)
	}
	return Duration(d), nil
}

// Seconds is the length in seconds.
func (d Duration) Seconds() float64 { return time.Duration(d).Seconds() }

// String is Go's notation.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText is String.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDuration.
func (d *Duration) UnmarshalText(b []byte) error { return d.Set(string(b)) }

// Set is ParseDuration, for flags.
func (d *Duration) Set(v string) error {
	p, err := ParseDuration(v)
	if err == nil {
		*d = p
	}
	return err
}

// Type names the value in a flag's help.
func (d *Duration) Type() string { return "duration" }

// ReservedLabel is the prefix of labels that formd itself sets.
const ReservedLabel = "formd."

var labelKey = regexp.MustCompile(`^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$`)

// ParseLabels reads K=V words: at most 32, keys of lower case letters, digits
// and "._/-" (63 bytes), values of at most 63 bytes, no key twice.
func ParseLabels(words []string) (map[string]string, error) {
	if len(words) > 32 {
		return nil, fmt.Errorf("%d labels; at most 32 are allowed", len(words))
	}
	out := make(map[string]string, len(words))
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("%q is not K=V", w)
		case !labelKey.MatchString(k):
			return nil, fmt.Errorf("%q is not a label's key", k)
		case strings.HasPrefix(k, ReservedLabel):
			return nil, fmt.Errorf("%q is reserved", k)
		case len(v) > 63:
			return nil, fmt.Errorf("the value of %q has %d bytes; at most 63 are allowed", k, len(v))
		}
		if _, twice := out[k]; twice {
			return nil, fmt.Errorf("%q is set twice", k)
		}
		out[k] = v
	}
	return out, nil
}

// maxNetworks bounds a list of networks.
const maxNetworks = 64

// ParseNetworks reads networks as ADDRESS/BITS; an address alone is one of one.
// Loopback is none.
func ParseNetworks(words []string) ([]netip.Prefix, error) {
	if len(words) > maxNetworks {
		return nil, fmt.Errorf("%d networks; at most %d are allowed", len(words), maxNetworks)
	}
	var out []netip.Prefix
	for _, w := range words {
		p, err := netip.ParsePrefix(w)
		if a, aerr := netip.ParseAddr(w); aerr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		switch {
		case err != nil:
			return nil, fmt.Errorf("%q is no network such as 10.1.0.0/16", w)
		case p != p.Masked():
			return nil, fmt.Errorf("%q is no network: did you mean %v or %v?", w, p.Masked(), p.Addr())
		case p.Addr().IsLoopback():
			return nil, fmt.Errorf("%q: loopback is the guest's own", w)
		}
		out = append(out, p)
	}
	return out, nil
}

// checkHostPort accepts off and host:port.
func checkHostPort(s string) error {
	if s == Off {
		return nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf("%q is not HOST:PORT or off", s)
	}
	if p, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q has no port between 0 and 65535", s)
	} else if p == 0 && port != "0" {
		return fmt.Errorf("%q has no port between 0 and 65535", s)
	}
	return nil
}

// isListen says whether p2p listens on what s names: TCP or QUIC on an IP.
func isListen(s string) bool {
	a, err := ma.NewMultiaddr(s)
	if err != nil || len(a) < 2 {
		return false
	}
	codes := make([]int, len(a))
	for i := range a {
		codes[i] = a[i].Protocol().Code
	}
	ip := codes[0] == ma.P_IP4 || codes[0] == ma.P_IP6
	return ip && (slices.Equal(codes[1:], []int{ma.P_TCP}) || slices.Equal(codes[1:], []int{ma.P_UDP, ma.P_QUIC_V1}))
}

// Keys lists the keys of the file, in the order of Config.
func Keys() []string {
	var keys []string
	t := reflect.TypeFor[Config]()
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("toml"))
	}
	return keys
}
