//go:build race

package des

const raced = true
