// Package spell finds what a mistyped word was meant to be.
//
// It guarantees the nearest candidate by Levenshtein distance in bytes, the
// first of equally near ones, and no answer for a word unlike all of them. It
// does not know swaps of neighbours as one edit. Pure, safe for concurrent use.
package spell

import "strings"

// Nearest is the candidate that word was probably meant to be, or "".
func Nearest(word string, candidates []string) string {
	best, at := "", len(word)/3+2
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), strings.ToLower(c)); d < at {
			best, at = c, d
		}
	}
	return best
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := prev
			if a[i] != b[j] {
				d = 1 + min(prev, row[j], row[j+1])
			}
			prev, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
