//go:build !race

package exchange

// raced: the race detector is on.
const raced = false
