//go:build race

package main

// hostilePeak is the most memory that an attacked node may have at any time, the
// race detector's shadow of it included.
const hostilePeak = 1 << 30
