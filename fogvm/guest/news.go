package guest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
)

// Name names a statement between a host and its guest: SHA-256 of its bytes.
type Name [sha256.Size]byte

// NameOf is the name of a statement.
func NameOf(raw []byte) Name { return sha256.Sum256(raw) }

// Compare orders names bytewise.
func (n Name) Compare(o Name) int { return bytes.Compare(n[:], o[:]) }

// Sum is over a set of names: SHA-256 of all, in ascending order.
func Sum[V any](names map[Name]V) Name {
	h := sha256.New()
	for _, n := range slices.SortedFunc(maps.Keys(names), Name.Compare) {
		h.Write(n[:])
	}
	return Name(h.Sum(nil))
}

// MarshalText implements encoding.TextMarshaler.
func (n Name) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, n[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Name) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(n)) {
		return fmt.Errorf("%w: %d bytes are no name of a statement", ErrFrame, len(text))
	}
	if _, err := hex.Decode(n[:], text); err != nil {
		return fmt.Errorf("%w: name of a statement: %w", ErrFrame, err)
	}
	return nil
}

// Told is a statement with its name.
type Told struct {
	Name Name
	Raw  []byte
}

// Named names statements.
func Named(raws [][]byte) []Told {
	out := make([]Told, len(raws))
	for i, raw := range raws {
		out[i] = Told{NameOf(raw), raw}
	}
	return out
}

// Teller tells a guest rounds of news, over one stream: all there is in the first,
// and then what has changed since the last one, as long as the guest acknowledges
// the same set as was told. What the guest did not take it is told again in each
// round that there is. The zero value is ready; a new stream takes a new Teller.
type Teller struct {
	told  map[Name]bool // that the guest has acknowledged; nil: it is told all
	again map[Name]bool // of it, what is told again
}

// Round tells a round and reads the answer. all is what there is now, in an order
// in which it can be taken, at any time as at the first.
func (t *Teller) Round(rw io.ReadWriter, all []Told) (MeshReport, error) {
	before, again := t.told, t.again
	t.told, t.again = nil, nil
	now := make(map[Name]bool, len(all))
	var news [][]byte
	for _, s := range all {
		if now[s.Name] = true; before == nil || !before[s.Name] || again[s.Name] {
			news = append(news, s.Raw)
		}
	}
	var gone []Name
	for _, n := range slices.SortedFunc(maps.Keys(before), Name.Compare) {
		if !now[n] {
			gone = append(gone, n)
		}
	}
	for part := range slices.Chunk(news, MaxNews) {
		if err := WriteNews(rw, News{Statements: part}); err != nil {
			return MeshReport{}, err
		}
	}
	for part := range slices.Chunk(gone, MaxGone) {
		if err := WriteNews(rw, News{Gone: part}); err != nil {
			return MeshReport{}, err
		}
	}
	if err := WriteNews(rw, News{End: true, Since: before != nil}); err != nil {
		return MeshReport{}, err
	}
	m, err := ReadMeshReport(rw)
	if err != nil || m.All || m.Sum != Sum(now) {
		return m, err
	}
	t.told, t.again = now, make(map[Name]bool, len(m.Again))
	for _, n := range m.Again {
		t.again[n] = true
	}
	return m, nil
}
