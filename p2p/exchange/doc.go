// Package exchange moves blocks between the peers of one network: tuned bitswap
// for the general case, and a bulk stream that answers "send these leaves" for
// peers that are known to have them. It runs on a libp2p host that it is given,
// under protocol IDs that carry the network's ID.
//
// Guarantees:
//   - Frames are bounded by what the receiver said it expects, never by what
//     the sender claims; counts of streams, requests and remembered peers are
//     bounded.
//   - A peer that is silent for Config.Stall in the middle of an answer ends
//     that stream with ErrStalled.
//   - Bitswap runs with limits under which the library loses no blocks: callers
//     must plug Limits into the host's resource manager, whose defaults make
//     bitswap hang (measured; a test keeps it so).
//
// Not guaranteed: what the bulk stream hands over is not verified here. Its
// caller knows the leaf's hash and size, and must check. Nor is anything said
// about who may ask: the host it is given decides that.
package exchange
