package stmt

import (
	"strings"
	"testing"
)

func TestIsCID(t *testing.T) {
	const cbor = "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
	const raw = "bafkreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"
	for s, want := range map[string]bool{
		cbor: true, raw: true, "": false, "b": false, cbor[:len(cbor)-1]: false, cbor + "a": false,
		strings.ToUpper(cbor): false, "z" + cbor[1:]: false, cbor[:20] + "=" + cbor[21:]: false,
		cbor[:len(cbor)-1] + "j":                         false, // bits beyond the last byte
		"QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG": false, // version 0
		"b" + strings.Repeat("a", 200):                   false,
		"bafy2bzaceb":                                    false, // blake2b, and short
	} {
		if IsCID(s) != want {
			t.Errorf("IsCID(%q) = %v", s, !want)
		}
	}
}
