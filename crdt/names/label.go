package names

import (
	"math/big"
	"strconv"
	"strings"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// Zone is what names are relative to, unless a network has another.
const Zone = stmt.DefaultZone

// keyCID is what precedes a peer ID in a CID of version 1: the version, and the
// codec libp2p-key.
const keyCID = "\x01\x72"

// Label is a key as one DNS label of 62 characters, "k51qzi…": the CID in base
// 36 that IPFS has for names of this kind, because domain names do not tell
// capitals from small letters.
func Label(k stmt.Key) string {
	return "k" + new(big.Int).SetBytes([]byte(keyCID+k.PeerID())).Text(36)
}

// labelLength is of every key's label.
const labelLength = 62

// ParseLabel reads what [Label] has written.
func ParseLabel(label string) (stmt.Key, bool) {
	if len(label) != labelLength || label[0] != 'k' {
		return stmt.Key{}, false
	}
	n, ok := new(big.Int).SetString(label[1:], 36)
	if !ok {
		return stmt.Key{}, false
	}
	b := n.Bytes()
	var k stmt.Key
	if prefix := len(b) - len(k); prefix > 0 {
		copy(k[:], b[prefix:])
	}
	return k, Label(k) == label
}

// Ref is what a name means, before anybody is asked whether it is there.
type Ref struct {
	App   string
	Slot  int      // -1: any
	Owner stmt.Key // zero: the asker's scope
}

// Parse reads a name of the zone: <app>, <slot>.<app>, either of them with an
// <owner> behind. Capitals count for nothing, nor does a dot at the end.
func Parse(name, zone string) (Ref, bool) {
	if len(name) > maxName {
		return Ref{}, false
	}
	rest, ok := strings.CutSuffix(canonical(name), "."+canonical(zone))
	if !ok {
		return Ref{}, false
	}
	labels := strings.Split(rest, ".")
	r := Ref{Slot: -1}
	if k, ok := ParseLabel(labels[len(labels)-1]); ok && len(labels) > 1 {
		r.Owner, labels = k, labels[:len(labels)-1]
	}
	switch len(labels) {
	case 2:
		slot, err := strconv.Atoi(labels[0])
		if err != nil || strconv.Itoa(slot) != labels[0] || slot < 0 || slot >= crdt.MaxReplicas {
			return Ref{}, false
		}
		r.Slot = slot
	case 1:
	default:
		return Ref{}, false
	}
	if r.App = labels[len(labels)-1]; !isLabel(r.App) {
		return Ref{}, false
	}
	return r, true
}

// maxName is of a domain name, written out.
const maxName = 254

// canonical has no capitals: of ASCII, as a domain name has no others.
func canonical(name string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, strings.TrimSuffix(name, "."))
}

// isLabel says whether an instance may have that name.
func isLabel(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case c == '-' && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != "" && len(s) <= 63
}
