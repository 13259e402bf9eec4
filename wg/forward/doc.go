// Package forward lets several WireGuard stations, a node's own device and the
// guests that it hosts, share one UDP port, and cannot read a word of theirs.
//
// An initiation names its addressee by a MAC under the addressee's public key;
// everything after it carries an index that the addressee has chosen, and told
// in a handshake that went out here.
//
// Guarantees: what a station sends can only bring datagrams to itself, never
// away from another station; memory is bounded for each station; a flood of
// initiations for nobody costs a bounded number of hashes a second, and those
// who have shaken hands before are not held up by it.
//
// Not guaranteed: that a datagram reaches the right one of two stations that
// happen to choose one index for the same remote at the same time (a chance of
// 2⁻³² for each pair of sessions): the later session finds nobody, and its next
// handshake has another index.
package forward
