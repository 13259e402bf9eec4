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
	b, err := lowerBase32.DecodeString(s[1:])
	if err != nil || lowerBase32.EncodeToString(b) != s[1:] { // one CID, one text
		return false
	}
	const sha256Code = 0x12
	if len(b) == 0 || b[0] != 1 {
		return false
	}
	_, n := binary.Uvarint(b[1:])
	if n <= 0 {
		return false
	}
	hash := b[1+n:]
	return len(hash) == 2+sha256.Size && hash[0] == sha256Code && hash[1] == sha256.Size
}
