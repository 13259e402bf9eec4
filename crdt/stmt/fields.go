package stmt

import "fmt"

// Fields checks that b is canonical and a map, and calls each for its entries in
// their order: the key as bytes of UTF-8, and the encoded value, both in b. It ends
// with the first error of each. It is for what is read by the thousand, where
// [Unmarshal] costs more than what it reads.
func Fields(b []byte, each func(key, value []byte) error) error {
	major, pairs, at, err := checkHead(b, 0)
	if err != nil {
		return err
	}
	if major != majorMap {
		return fmt.Errorf("%w: no map", ErrShape)
	}
	if at, err = walkMap(b, 0, at, pairs, 0, each); err != nil {
		return err
	}
	if at != len(b) {
		return fmt.Errorf("%w: %d bytes after the value", ErrEncoding, len(b)-at)
	}
	return nil
}

// Elements calls each for the encoded elements of an array within canonical bytes.
func Elements(b []byte, each func(value []byte) error) error {
	major, n, at, err := checkHead(b, 0)
	if err != nil {
		return err
	}
	if major != majorArray {
		return fmt.Errorf("%w: no array", ErrShape)
	}
	for range n {
		end, err := checkValue(b, at, 1)
		if err != nil {
			return err
		}
		if err := each(b[at:end:end]); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// Uint reads an encoded integer that is not negative.
func Uint(b []byte) (uint64, error) {
	major, n, _, err := checkHead(b, 0)
	if err == nil && major != majorUint {
		err = fmt.Errorf("%w: no integer from 0", ErrShape)
	}
	return n, err
}

// Text reads an encoded text.
func Text(b []byte) (string, error) {
	s, err := stringOf(b, majorText)
	return string(s), err
}

// Bytes reads an encoded byte string, which is not copied.
func Bytes(b []byte) ([]byte, error) { return stringOf(b, majorBytes) }

// stringOf returns what follows the head of a string that is all of b.
func stringOf(b []byte, want byte) ([]byte, error) {
	major, n, at, err := checkHead(b, 0)
	switch {
	case err != nil:
		return nil, err
	case major != want:
		return nil, fmt.Errorf("%w: another type of value", ErrShape)
	case n != uint64(len(b)-at):
		return nil, fmt.Errorf("%w: string cut short", ErrEncoding)
	}
	return b[at:len(b):len(b)], nil
}

// AppendUint appends an unsigned integer in canonical form; the other Append
// functions are its like. Whoever appends a map or an array appends so many pairs,
// sorted by their keys' encodings, or elements after it.
func AppendUint(b []byte, n uint64) []byte { return appendHead(b, majorUint, n) }

// AppendBytes appends a byte string.
func AppendBytes(b, s []byte) []byte { return append(appendHead(b, majorBytes, uint64(len(s))), s...) }

// AppendText appends text, which must be valid UTF-8.
func AppendText(b []byte, s string) []byte {
	return append(appendHead(b, majorText, uint64(len(s))), s...)
}

// AppendArray begins an array of n elements.
func AppendArray(b []byte, n int) []byte { return appendHead(b, majorArray, uint64(n)) }

// AppendMap begins a map of n pairs.
func AppendMap(b []byte, n int) []byte { return appendHead(b, majorMap, uint64(n)) }
