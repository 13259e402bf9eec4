package stmt

import "fmt"

// The payload is the signed map. Its keys are one letter: statements are many and
// small. It is written and read by hand, as every statement is several times.

// appendPayload appends the map that says s. Its body has to be canonical.
func (s *Statement) appendPayload(b []byte) []byte {
	n := 4
	for _, has := range []bool{len(s.Deps) > 0, s.Epoch > 0, s.Seq > 0, s.Time > 0, len(s.Via) > 0} {
		if has {
			n++
		}
	}
	b = AppendMap(b, n)
	b = AppendBytes(AppendText(b, "a"), s.Author[:])
	b = append(AppendText(b, "b"), s.Body...)
	if len(s.Deps) > 0 {
		b = AppendArray(AppendText(b, "d"), len(s.Deps))
		for _, d := range s.Deps {
			b = AppendBytes(b, d[:])
		}
	}
	b = appendNumber(b, "e", s.Epoch)
	b = AppendText(AppendText(b, "k"), string(s.Kind))
	b = AppendBytes(AppendText(b, "n"), s.Network[:])
	b = appendNumber(b, "s", s.Seq)
	b = appendNumber(b, "t", uint64(s.Time))
	if len(s.Via) > 0 {
		b = AppendBytes(AppendText(b, "v"), s.Via)
	}
	return b
}

// appendNumber appends a field that is left out when it is zero.
func appendNumber(b []byte, key string, n uint64) []byte {
	if n == 0 {
		return b
	}
	return AppendUint(AppendText(b, key), n)
}

// readField reads one entry of the payload; it passes over those it does not know.
func (s *Statement) readField(key, value []byte) (err error) {
	switch string(key) {
	case "k":
		var k string
		k, err = Text(value)
		s.Kind = Kind(k)
	case "n":
		err = s.Network.UnmarshalCBOR(value)
	case "a":
		err = s.Author.UnmarshalCBOR(value)
	case "e":
		s.Epoch, err = Uint(value)
	case "s":
		s.Seq, err = Uint(value)
	case "t":
		var t uint64
		if t, err = Uint(value); err == nil && t > MaxTime {
			err = fmt.Errorf("%w: time %d", ErrShape, t)
		}
		s.Time = int64(t)
	case "d":
		err = Elements(value, func(v []byte) error {
			s.Deps = append(s.Deps, ID{})
			return s.Deps[len(s.Deps)-1].UnmarshalCBOR(v)
		})
	case "v":
		s.Via, err = Bytes(value)
	case "b":
		s.Body = value
	}
	return err
}
