// Package record is what a run of the simulator leaves behind: a header, and then what
// happened, as one JSON object a line with its virtual time. It is for programs to read
// and for package page to draw.
//
// Guarantees:
//
//   - Lines are in the order of their times; what is wrong in a file is refused with
//     the line's number.
//
//   - A recording is bounded: of each kind of line there is a most (see Most), and what
//     is left out above it is counted in the last line, never silently. The first are
//     kept.
//
// Non-guarantees: a recording is no replay. What the hash of a run covers is not in
// it, and statements are told of in sum and not each delivery.
package record
