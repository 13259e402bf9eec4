package store

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/multiformats/go-multihash"
)

// What a root node says it is.
const (
	kindPack = "pack"
	kindBase = "base"
	kindSig  = "sig"
)

// signatureDomain keeps a pack's signature from meaning anything elsewhere.
const signatureDomain = "formation pack signature v1\x00"

// The wire forms differ from the exported ones in their links only.
type (
	wireRoot struct {
		Version int         `cbor:"v"`
		Kind    string      `cbor:"kind"`
		Name    string      `cbor:"name"`
		About   string      `cbor:"about,omitempty"`
		Base    link        `cbor:"base"`
		Layers  []wireEntry `cbor:"layers"`
		Run     RunConfig   `cbor:"run"`
		Parent  *link       `cbor:"parent,omitempty"`
		Message string      `cbor:"message,omitempty"`
		Salt    []byte      `cbor:"salt,omitempty"`
		Author  []byte      `cbor:"author"`
	}
	wireBase struct {
		Version    int        `cbor:"v"`
		Kind       string     `cbor:"kind"`
		Name       string     `cbor:"name"`
		Kernel     wireEntry  `cbor:"kernel"`
		Initrd     *wireEntry `cbor:"initrd,omitempty"`
		Modules    *wireEntry `cbor:"modules,omitempty"`
		Rootfs     wireEntry  `cbor:"rootfs"`
		Packages   []string   `cbor:"packages,omitempty"`
		Release    string     `cbor:"release,omitempty"`
		Arch       string     `cbor:"arch,omitempty"`
		Provenance string     `cbor:"provenance,omitempty"`
		Author     []byte     `cbor:"author"`
	}
	wireEntry struct {
		Kind    string `cbor:"kind"`
		Root    link   `cbor:"root"`
		Size    int64  `cbor:"size"`
		SHA256  []byte `cbor:"sha256"`
		Format  string `cbor:"format"`
		Chunker string `cbor:"chunker"`
	}
	wireSig struct {
		Version int    `cbor:"v"`
		Kind    string `cbor:"kind"`
		Pack    link   `cbor:"pack"`
		Author  []byte `cbor:"author"`
		Sig     []byte `cbor:"sig"`
	}
)

// link is a CID as DAG-CBOR writes it: tag 42 around a zero byte and the CID.
type link struct{ cid.Cid }

func (l link) MarshalCBOR() ([]byte, error) {
	if !l.Defined() {
		return nil, errors.New("undefined link")
	}
	raw := append([]byte{0}, l.Bytes()...)
	return encoder.Marshal(cbor.Tag{Number: 42, Content: raw})
}

func (l *link) UnmarshalCBOR(b []byte) error {
	var tag cbor.RawTag
	if err := decoder.Unmarshal(b, &tag); err != nil {
		return err
	}
	var raw []byte
	if err := decoder.Unmarshal(tag.Content, &raw); err != nil {
		return err
	}
	if tag.Number != 42 || len(raw) < 1 || raw[0] != 0 {
		return errors.New("not a link")
	}
	c, err := cid.Cast(raw[1:])
	if err != nil {
		return err
	}
	l.Cid = c
	return CheckCID(c)
}

var (
	encoder = must(cbor.EncOptions{
		Sort:          cbor.SortLengthFirst, // DAG-CBOR's order
		IndefLength:   cbor.IndefLengthForbidden,
		NilContainers: cbor.NilContainerAsEmpty,
	}.EncMode())
	decoder = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		MaxNestedLevels:  16,
		MaxArrayElements: 8192,
		MaxMapPairs:      1024,
	}.DecMode())
)

// must is for options that are constants: a failure is a bug of this file.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// hashLen is the length of a whole sha2-256 as a multihash.
const hashLen = 2 + sha256.Size

// CheckCID accepts CIDv1 with a whole sha2-256 only: nothing else names anything in
// a store. ErrCorrupt.
func CheckCID(c cid.Cid) error {
	p := c.Prefix()
	if p.Version != 1 || p.MhType != multihash.SHA2_256 || p.MhLength != sha256.Size || len(c.Hash()) != hashLen {
		return fmt.Errorf("%w: hash kind of %s is not CIDv1 sha2-256", ErrCorrupt, c)
	}
	return nil
}

// digest is the key of a block; only sha2-256 gets this far.
type digest [sha256.Size]byte

// digestOf is for a CID that has passed CheckCID: of another it panics.
func digestOf(c cid.Cid) (d digest) {
	h := c.Hash()
	copy(d[:], h[len(h)-sha256.Size:])
	return d
}

// cidOf names data of a codec.
func cidOf(codec uint64, data []byte) cid.Cid {
	return cidOfDigest(codec, sha256.Sum256(data))
}

func cidOfDigest(codec uint64, d digest) cid.Cid {
	// Encode fails only for unknown codes and wrong lengths.
	return cid.NewCidV1(codec, must(multihash.Encode(d[:], multihash.SHA2_256)))
}

// errOther is ErrCorrupt of a peer: it gave other bytes than those it was asked for,
// which nobody who has them does. That the right bytes are no pack is not its fault.
var errOther = fmt.Errorf("%w: other bytes than asked for", ErrCorrupt)

// verifyBlock checks that data is what c names.
func verifyBlock(c cid.Cid, data []byte) error {
	if err := CheckCID(c); err != nil {
		return err
	}
	if sha256.Sum256(data) != digestOf(c) {
		return fmt.Errorf("%w: block %s does not match its hash", errOther, c)
	}
	return nil
}

// encodeNode is the deterministic DAG-CBOR of a wire form, and its CID.
func encodeNode(v any, limit int) ([]byte, cid.Cid, error) {
	data, err := encoder.Marshal(v)
	if err != nil {
		return nil, cid.Undef, fmt.Errorf("encode: %w", err)
	}
	if len(data) > limit {
		return nil, cid.Undef, fmt.Errorf("%w: node of %d bytes, at most %d", ErrTooLarge, len(data), limit)
	}
	return data, cidOf(cid.DagCBOR, data), nil
}

// decodeNode reads one DAG-CBOR node strictly. Unknown keys are tolerated.
func decodeNode(data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("%w: node of %d bytes, at most %d", ErrCorrupt, len(data), limit)
	}
	if err := decoder.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	// Two encodings of one pack would be two packs: only the canonical one is
	// read. The IPLD library is the judge, so other tools agree.
	nb := basicnode.Prototype.Any.NewBuilder()
	if err := dagcbor.Decode(nb, bytes.NewReader(data)); err != nil {
		return fmt.Errorf("%w: not DAG-CBOR: %w", ErrCorrupt, err)
	}
	var again bytes.Buffer
	if err := dagcbor.Encode(nb.Build(), &again); err != nil {
		return fmt.Errorf("%w: not DAG-CBOR: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(again.Bytes(), data) {
		return fmt.Errorf("%w: not canonical DAG-CBOR", ErrCorrupt)
	}
	return nil
}

// node is a decoded root node of either kind.
type node struct {
	pack *Root
	base *Base
}

// entries are the images the node itself links.
func (n node) entries() []Entry {
	if n.pack != nil {
		return n.pack.Layers
	}
	return n.base.Entries()
}

func (n node) author() ed25519.PublicKey {
	if n.pack != nil {
		return n.pack.Author
	}
	return n.base.Author
}

func decodeRoot(data []byte) (n node, err error) {
	var head struct {
		Version int    `cbor:"v"`
		Kind    string `cbor:"kind"`
	}
	if err := decodeNode(data, MaxRoot, &head); err != nil {
		return n, err
	}
	if head.Version != Version {
		return n, fmt.Errorf("%w: format version %d, this program knows %d", ErrCorrupt, head.Version, Version)
	}
	switch head.Kind {
	case kindPack:
		var w wireRoot
		if err := decoder.Unmarshal(data, &w); err != nil {
			return n, fmt.Errorf("%w: pack: %w", ErrCorrupt, err)
		}
		n.pack = w.root()
		err = n.pack.check()
	case kindBase:
		var w wireBase
		if err := decoder.Unmarshal(data, &w); err != nil {
			return n, fmt.Errorf("%w: base: %w", ErrCorrupt, err)
		}
		n.base = w.base()
		err = n.base.check()
	default:
		err = fmt.Errorf("%w: node of kind %q", ErrCorrupt, head.Kind)
	}
	return n, err
}

func (r *Root) wire() wireRoot {
	w := wireRoot{
		Version: r.Version, Kind: kindPack, Name: r.Name, About: r.Description, Base: link{r.Base},
		Run: r.Run, Message: r.Message, Salt: r.Salt, Author: r.Author,
	}
	if r.Parent != nil {
		w.Parent = &link{*r.Parent}
	}
	for _, e := range r.Layers {
		w.Layers = append(w.Layers, e.wire())
	}
	return w
}

func (w wireRoot) root() *Root {
	r := &Root{
		Version: w.Version, Name: w.Name, Description: w.About, Base: w.Base.Cid,
		Run: w.Run, Message: w.Message, Salt: w.Salt, Author: w.Author,
	}
	if w.Parent != nil {
		r.Parent = &w.Parent.Cid
	}
	for _, e := range w.Layers {
		r.Layers = append(r.Layers, e.entry())
	}
	return r
}

func (b *Base) wire() wireBase {
	optional := func(e Entry) *wireEntry {
		if !e.Root.Defined() {
			return nil
		}
		w := e.wire()
		return &w
	}
	return wireBase{
		Version: b.Version, Kind: kindBase, Name: b.Name, Kernel: b.Kernel.wire(), Initrd: optional(b.Initrd),
		Modules: optional(b.Modules), Rootfs: b.Rootfs.wire(), Packages: b.Packages, Release: b.KernelVersion,
		Arch: b.Arch, Provenance: b.Provenance, Author: b.Author,
	}
}

func (w wireBase) base() *Base {
	b := &Base{
		Version: w.Version, Name: w.Name, Kernel: w.Kernel.entry(), Rootfs: w.Rootfs.entry(),
		Packages: w.Packages, KernelVersion: w.Release, Arch: w.Arch, Provenance: w.Provenance, Author: w.Author,
	}
	if w.Initrd != nil {
		b.Initrd = w.Initrd.entry()
	}
	if w.Modules != nil {
		b.Modules = w.Modules.entry()
	}
	return b
}

func (e Entry) wire() wireEntry {
	return wireEntry{Kind: e.Kind, Root: link{e.Root}, Size: e.Size, SHA256: e.SHA256, Format: e.Format, Chunker: e.Chunker}
}

func (w wireEntry) entry() Entry {
	return Entry{Kind: w.Kind, Root: w.Root.Cid, Size: w.Size, SHA256: w.SHA256, Format: w.Format, Chunker: w.Chunker}
}

// sign makes the detached signature block of a root.
func sign(root cid.Cid, key ed25519.PrivateKey) ([]byte, cid.Cid, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok {
		return nil, cid.Undef, errors.New("sign: not an Ed25519 key")
	}
	sig := ed25519.Sign(key, append([]byte(signatureDomain), root.Bytes()...))
	return encodeNode(wireSig{Version: Version, Kind: kindSig, Pack: link{root}, Author: pub, Sig: sig}, MaxSignature)
}

// checkSignature verifies the signature block of a root made by author.
func checkSignature(block []byte, root cid.Cid, author ed25519.PublicKey) error {
	var w wireSig
	if err := decodeNode(block, MaxSignature, &w); err != nil {
		return fmt.Errorf("signature of %s: %w", root, err)
	}
	switch {
	case w.Version != Version || w.Kind != kindSig:
		return fmt.Errorf("%w: block beside %s is no signature", ErrCorrupt, root)
	case w.Pack.Cid != root:
		return fmt.Errorf("%w: signature beside %s is of %s", ErrCorrupt, root, w.Pack.Cid)
	case !bytes.Equal(w.Author, author):
		return fmt.Errorf("%w: signature of %s is not its author's", ErrCorrupt, root)
	case !ed25519.Verify(author, append([]byte(signatureDomain), root.Bytes()...), w.Sig):
		return fmt.Errorf("%w: signature of %s does not verify", ErrCorrupt, root)
	}
	return nil
}
