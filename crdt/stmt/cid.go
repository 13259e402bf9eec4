package stmt

import (
	"crypto/sha256"
	"encoding/binary"
)

// maxCID is the longest text of a CID in bytes.
const maxCID = 128

// IsCID says whether s is a CID as packs and bases are named in statements:
// version 1, SHA-256, lower-case unpadded base32 ("b…"), at most 128 bytes. Any
// codec will do; whether the content is what it says is for the store to see.
func IsCID(s string) bool {
	if len(s) < 2 || len(s) > maxCID || s[0] != 'b' {
		return false
	}
	var text, again, bytes [maxCID]byte // on the stack: this is asked of every pack of every spec
	n := copy(text[:], s[1:])
	decoded, err := lowerBase32.Decode(bytes[:], text[:n])
	b := bytes[:decoded]
	if err != nil || lowerBase32.EncodedLen(len(b)) != n {
		return false
	}
	if lowerBase32.Encode(again[:], b); string(again[:n]) != s[1:] { // one CID, one text
		return false
	}
	const sha256Code = 0x12
	if len(b) == 0 || b[0] != 1 {
		return false
	}
	_, codec := binary.Uvarint(b[1:])
	if codec <= 0 {
		return false
	}
	hash := b[1+codec:]
	return len(hash) == 2+sha256.Size && hash[0] == sha256Code && hash[1] == sha256.Size
}
