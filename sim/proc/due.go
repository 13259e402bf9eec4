package proc

import (
	"context"
	"slices"
	"time"
)

// due is something to do at a time.
type due struct {
	at time.Duration
	do func(context.Context) error
}

// insert keeps a list in the order of its times; what is at one time stays in the
// order in which it came.
func insert(list []due, d due) []due {
	i := slices.IndexFunc(list, func(e due) bool { return e.at > d.at })
	if i < 0 {
		i = len(list)
	}
	return slices.Insert(list, i, d)
}
