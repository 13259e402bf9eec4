// Package archtest holds the tree to its architecture: which package may import
// which and why, that each says what it is for, and that the pure ones stay
// pure. All of it is tests; ARCHITECTURE.md draws the same arrows.
package archtest
