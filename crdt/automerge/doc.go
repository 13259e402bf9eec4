// Package automerge is the engine in which formd merges specs: Automerge, by way
// of automerge-go and cgo. Where cgo is off, [New] returns the pure-Go model,
// which gives the same results.
//
// The library aborts the process on crafted changes, so it never sees bytes from
// the network. It is given verified op lists, which are replayed: fork at the
// dependencies, put, commit with the given time, merge. Its own hashes, bytes and
// sync protocol stay inside this package, so its version is nobody else's
// concern.
//
// Guarantees: the values of a document equal those of crdt.NewModel for the same
// changes in any causal order (a differential test holds them equal); a failed
// replay leaves the document as it was; at most a few hundred documents are open,
// the others are kept as the library's own saved bytes.
//
// Not guaranteed: safety for concurrent use (as for every crdt.SpecEngine), and
// prompt return of native memory, which the library's finalizers free.
package automerge
