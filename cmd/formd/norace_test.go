//go:build !race

package main

// hostilePeak is the most memory that an attacked node may have at any time.
const hostilePeak = 192 << 20
