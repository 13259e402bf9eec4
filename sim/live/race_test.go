//go:build race

package live

const raced = true
