// Package lease decides who may run the one active replica of an instance under
// the partition contract fence. A [Voter] promises its vote to one holder for a
// time, a [Holder] collects a majority of them. Both are pure: no clock,
// randomness, disk or network.
//
// Times are since boot, suspension included (CLOCK_BOOTTIME), each on the clock
// of whoever states it; no clock is compared with another's. A holder's machine
// may run until [Holder.Until], which is Lease − Margin after it began to ask; a
// voter promises itself to nobody else for Lease + Margin after it answered. So
// between two holders lie twice the margin, for clocks that run at different
// rates and for what pausing a machine takes.
//
// Guarantees, while the rates of all clocks are within Margin/Lease of each other
// (one sixth by the defaults, which leaves almost six seconds for pausing) and what
// a voter was told to keep is there after a crash, or all of it is known to be gone:
//
//   - no two machines of an instance run at once, whatever is lost, delayed,
//     repeated or reordered, whoever crashes, restarts, reboots or sleeps;
//   - the same across a change of voters, when a majority of the former ones has
//     heard of the change, or is gone, within Margin of anybody else's hearing it;
//   - while a majority of the voters answers, one of those who ask holds the
//     lease within two leases.
//
// Not guaranteed: anything about a host that lies. It can run a machine that it
// was told to pause, and nobody sees it.
package lease
