package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/formthefog/formation/crdt/stmt"
)

// Accept says whose instances may run on a node.
type Accept struct {
	Any      bool       // everyone's
	Members  bool       // those of owners the network admits
	Operator bool       // those of whoever runs the node
	Owners   []stmt.Key // these, sorted
}

// ParseAccept reads words of the forms any, members, operator and
// owner:KEY[,KEY…], separated by commas or given as several values. No word at
// all is the zero Accept, which accepts nobody: the caller chooses a default.
func ParseAccept(words []string) (Accept, error) {
	var a Accept
	for _, list := range words {
		owner := false
		for w := range strings.SplitSeq(list, ",") {
			w = strings.TrimSpace(w)
			if rest, ok := strings.CutPrefix(w, "owner:"); ok {
				owner, w = true, rest
			} else if w == "any" || w == "members" || w == "operator" {
				owner = false
			}
			switch {
			case w == "any":
				a.Any = true
			case w == "members":
				a.Members = true
			case w == "operator":
				a.Operator = true
			case owner:
				k, err := stmt.ParseKey(w)
				if err != nil {
					return Accept{}, fmt.Errorf("owner: %w", err)
				}
				if !slices.Contains(a.Owners, k) {
					a.Owners = append(a.Owners, k)
				}
			default:
				return Accept{}, fmt.Errorf("%q is not any, members, operator or owner:KEY,…", w)
			}
		}
	}
	if len(a.Owners) > 32 {
		return Accept{}, fmt.Errorf("%d owners; at most 32 are allowed", len(a.Owners))
	}
	slices.SortFunc(a.Owners, func(x, y stmt.Key) int { return strings.Compare(x.String(), y.String()) })
	return a, nil
}

// IsZero reports whether a accepts nobody.
func (a Accept) IsZero() bool { return !a.Any && !a.Members && !a.Operator && len(a.Owners) == 0 }

// String is the form ParseAccept reads.
func (a Accept) String() string {
	var words []string
	if a.Any {
		words = append(words, "any")
	}
	if a.Members {
		words = append(words, "members")
	}
	if a.Operator {
		words = append(words, "operator")
	}
	for _, k := range a.Owners {
		words = append(words, "owner:"+k.String())
	}
	return strings.Join(words, ",")
}
