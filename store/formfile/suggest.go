package formfile

import "strings"

// suggest returns the candidate nearest to word by edit distance, or "" when
// none is near enough to be what was meant. Case does not count.
func suggest(word string, candidates []string) string {
	// A longer word is no typo of anything we know; do not spend time on it.
	if len(word) > 40 {
		return ""
	}
	word = strings.ToLower(word)
	best, bestDist := "", 1+max(1, len(word)/3)
	for _, c := range candidates {
		if d := editDistance(word, strings.ToLower(c)); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// DidYouMean is "; did you mean X?" or "", for those who know more names than a
// Formfile holds.
func DidYouMean(word string, candidates []string) string { return didYouMean(word, candidates) }

// didYouMean is "; did you mean X?" or "".
func didYouMean(word string, candidates []string) string {
	if s := suggest(word, candidates); s != "" {
		return "; did you mean " + s + "?"
	}
	return ""
}

// editDistance counts insertions, deletions, substitutions and swaps of
// neighbours (optimal string alignment).
func editDistance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(x)][len(y)]
}
