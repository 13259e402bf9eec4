package stmt

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// MaxNesting is the deepest nesting of arrays and maps in canonical bytes.
const MaxNesting = 8

// ErrEncoding is wrapped by every error about bytes that are not the canonical
// encoding of anything.
var ErrEncoding = errors.New("stmt: not canonical DAG-CBOR")

var (
	encMode = must(cbor.EncOptions{
		Sort:          cbor.SortLengthFirst,
		IndefLength:   cbor.IndefLengthForbidden,
		TagsMd:        cbor.TagsForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
		ByteArray:     cbor.ByteArrayToByteSlice,
	}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   MaxNesting,
		IntDec:            cbor.IntDecConvertSignedOrFail,
	}.DecMode())
)

// must is for options fixed at compile time.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal returns the canonical encoding of v: a struct with cbor tags, a map
// with string keys, a slice, an integer, a bool, a string or bytes. A float, a
// tag or a value nested deeper than [MaxNesting] is an error wrapping
// [ErrEncoding].
func Marshal(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	if err := CheckCanonical(b); err != nil {
		return nil, err
	}
	return b, nil
}

// Unmarshal decodes canonical bytes into v, a pointer. Fields that v does not
// know are skipped; anything not canonical is an error wrapping [ErrEncoding].
// The caller bounds len(b).
func Unmarshal(b []byte, v any) error {
	if err := CheckCanonical(b); err != nil {
		return err
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	return nil
}

// decodeFixed fills dst from a byte string of exactly its length; the library
// alone would pad or cut.
func decodeFixed(dst, b []byte) error {
	major, n, at, err := checkHead(b, 0)
	if err != nil {
		return err
	}
	if major != majorBytes || n != uint64(len(dst)) || len(b)-at != len(dst) {
		return fmt.Errorf("%w: not a byte string of %d bytes", ErrEncoding, len(dst))
	}
	copy(dst, b[at:])
	return nil
}

// UnmarshalCBOR accepts a byte string of exactly 32 bytes.
func (k *Key) UnmarshalCBOR(b []byte) error { return decodeFixed(k[:], b) }

// UnmarshalCBOR accepts a byte string of exactly 32 bytes.
func (n *NetworkID) UnmarshalCBOR(b []byte) error { return decodeFixed(n[:], b) }

// UnmarshalCBOR accepts a byte string of exactly 32 bytes.
func (i *ID) UnmarshalCBOR(b []byte) error { return decodeFixed(i[:], b) }

// Raw is a canonical value kept as its bytes.
type Raw = cbor.RawMessage

// CheckCanonical says whether b is exactly one canonical value: see the package
// documentation for what that means. It allocates nothing.
func CheckCanonical(b []byte) error {
	n, err := checkValue(b, 0, 0)
	if err != nil {
		return err
	}
	if n != len(b) {
		return fmt.Errorf("%w: %d bytes after the value", ErrEncoding, len(b)-n)
	}
	return nil
}

const (
	majorUint = iota
	majorInt
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

// checkValue checks the value that starts at b[at:] and returns where it ends.
func checkValue(b []byte, at, depth int) (int, error) {
	major, arg, next, err := checkHead(b, at)
	if err != nil {
		return 0, err
	}
	if depth >= MaxNesting && (major == majorArray || major == majorMap) {
		return 0, fmt.Errorf("%w: nested deeper than %d at byte %d", ErrEncoding, MaxNesting, at)
	}
	switch major {
	case majorUint, majorSimple:
		return next, nil
	case majorInt:
		if arg > 1<<63-1 {
			return 0, fmt.Errorf("%w: integer below -2^63 at byte %d", ErrEncoding, at)
		}
		return next, nil
	case majorBytes, majorText:
		if arg > uint64(len(b)-next) {
			return 0, fmt.Errorf("%w: string cut short at byte %d", ErrEncoding, at)
		}
		end := next + int(arg)
		if major == majorText && !utf8.Valid(b[next:end]) {
			return 0, fmt.Errorf("%w: invalid UTF-8 at byte %d", ErrEncoding, at)
		}
		return end, nil
	case majorArray:
		// Every element takes a byte at least: a larger count is a lie.
		if arg > uint64(len(b)-next) {
			return 0, fmt.Errorf("%w: array cut short at byte %d", ErrEncoding, at)
		}
		for range arg {
			if next, err = checkValue(b, next, depth+1); err != nil {
				return 0, err
			}
		}
		return next, nil
	default: // majorMap
		return walkMap(b, at, next, arg, depth, nil)
	}
}

// walkMap checks the map at b[at:], whose entries begin at next, calls each, if not
// nil, for them, and returns where the map ends.
func walkMap(b []byte, at, next int, pairs uint64, depth int, each func(key, value []byte) error) (int, error) {
	if pairs > uint64(len(b)-next)/2 {
		return 0, fmt.Errorf("%w: map cut short at byte %d", ErrEncoding, at)
	}
	var prev []byte
	for i := range pairs {
		if next >= len(b) || b[next]>>5 != majorText {
			return 0, fmt.Errorf("%w: map key is no text at byte %d", ErrEncoding, next)
		}
		end, err := checkValue(b, next, depth+1)
		if err != nil {
			return 0, err
		}
		// With shortest heads, length-first order of the keys is the
		// bytewise order of their encodings.
		key := b[next:end]
		if i > 0 && bytes.Compare(prev, key) >= 0 {
			return 0, fmt.Errorf("%w: map keys out of order or repeated at byte %d", ErrEncoding, next)
		}
		prev = key
		if next, err = checkValue(b, end, depth+1); err != nil {
			return 0, err
		}
		if each == nil {
			continue
		}
		text, err := stringOf(key, majorText)
		if err == nil {
			err = each(text, b[end:next:next])
		}
		if err != nil {
			return 0, err
		}
	}
	return next, nil
}

// checkHead reads one head and insists on its shortest form.
func checkHead(b []byte, at int) (major byte, arg uint64, next int, err error) {
	if at >= len(b) {
		return 0, 0, 0, fmt.Errorf("%w: cut short at byte %d", ErrEncoding, at)
	}
	major, info := b[at]>>5, b[at]&31
	next = at + 1
	switch {
	case major == majorTag:
		return 0, 0, 0, fmt.Errorf("%w: tag at byte %d", ErrEncoding, at)
	case major == majorSimple:
		if info < 20 || info > 22 { // false, true, null
			return 0, 0, 0, fmt.Errorf("%w: float or simple value at byte %d", ErrEncoding, at)
		}
		return major, 0, next, nil
	case info < 24:
		return major, uint64(info), next, nil
	case info > 27:
		return 0, 0, 0, fmt.Errorf("%w: indefinite or reserved length at byte %d", ErrEncoding, at)
	}
	n := 1 << (info - 24)
	if len(b)-next < n {
		return 0, 0, 0, fmt.Errorf("%w: cut short at byte %d", ErrEncoding, at)
	}
	for _, c := range b[next : next+n] {
		arg = arg<<8 | uint64(c)
	}
	if (n == 1 && arg < 24) || (n > 1 && arg>>(uint(n)*4) == 0) {
		return 0, 0, 0, fmt.Errorf("%w: head longer than needed at byte %d", ErrEncoding, at)
	}
	return major, arg, next + n, nil
}

// appendHead appends the shortest head.
func appendHead(b []byte, major byte, arg uint64) []byte {
	switch m := major << 5; {
	case arg < 24:
		return append(b, m|byte(arg))
	case arg < 1<<8:
		return append(b, m|24, byte(arg))
	case arg < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, m|25), uint16(arg))
	case arg < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, m|26), uint32(arg))
	default:
		return binary.BigEndian.AppendUint64(append(b, m|27), arg)
	}
}
