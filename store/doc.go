// Package store keeps Formpacks: what a virtual machine is made of, named by
// its hash.
//
// A pack is an IPLD DAG. Its root node is deterministic DAG-CBOR with the run
// configuration, a link to a base (another root node) and links to layers;
// base and layers link images, which are files cut into chunks the way IPFS
// tools do it (boxo's buzhash, balanced UnixFS, raw leaves, CIDv1, sha2-256).
// The CID of the root node is the pack's name everywhere.
//
// Guarantees:
//   - Bytes that came from elsewhere are hashed before they are kept, given to
//     anyone, or counted as present; a pack's signature, sizes, link counts,
//     depths and hash kinds are checked before its images are asked for.
//   - The image file is the only copy of an image's chunks. It is complete,
//     durable and its whole-file SHA-256 matched before it has its final name.
//   - A fetch killed at any moment goes on where it was; what is half there is
//     served to others, and never handed out by Path.
//   - Chunks that any image of the store holds are copied, not fetched. Packs
//     that share a base or a layer store it once.
//   - All methods may be called concurrently; fetches of one CID coalesce.
//
// Not guaranteed:
//   - A store belongs to one process at a time; Open fails with ErrLocked.
//   - Nothing is collected until GC is called, and what GC keeps is decided by
//     pins and its caller.
//   - A disk that rots under a complete image is noticed when the chunk is read
//     through Blocks or by Verify, not when QEMU reads it.
//   - A signature says who made a pack, not that its maker may run here: that is
//     decided by signed state, elsewhere.
package store
