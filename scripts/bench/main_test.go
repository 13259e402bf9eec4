package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	ratio := figure{Name: "r", Unit: "x", Target: 0.6}
	memory := figure{Name: "m", Unit: "MiB", Target: 80, AtMost: true}
	for _, c := range []struct {
		f      figure
		values []float64
		want   string
	}{
		{ratio, []float64{0.5, 0.7123, 0.9}, "bench: r 0.712 x (target >= 0.6) ok"},
		{ratio, []float64{0.5, 0.6}, "bench: r 0.55 x (target >= 0.6) short"},
		{memory, []float64{1234.56}, "bench: m 1235 MiB (target <= 80) short"},
		{memory, []float64{0}, "bench: m 0 MiB (target <= 80) ok"},
		{memory, nil, "bench: m failed MiB (target <= 80) short"},
	} {
		if got := line(c.f, c.values); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}

func TestRunPicksAndSurvives(t *testing.T) {
	saved := measurements
	defer func() { measurements = saved }()
	measurements = nil
	round := 0
	register(measurement{
		Figures: []figure{{Name: "a-one", Unit: "x", Target: 1}, {Name: "b-two", Unit: "s", Target: 5, AtMost: true}},
		Rounds:  3,
		Run: func(_ context.Context, e *env) (map[string]float64, error) {
			round++
			return map[string]float64{"a-one": float64(round), "b-two": 10}, nil
		},
	})
	register(measurement{
		Figures: []figure{{Name: "b-broken", Unit: "%", Target: 5, AtMost: true}},
		Run:     func(context.Context, *env) (map[string]float64, error) { return nil, errors.New("no disk") },
	})
	var out, log bytes.Buffer
	if err := run(t.Context(), []string{"-run", "^b-"}, &out, &log); err != nil {
		t.Fatal(err)
	}
	want := "bench: b-two 10 s (target <= 5) short\nbench: b-broken failed % (target <= 5) short\n"
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	if round != 3 || !strings.Contains(log.String(), "no disk") {
		t.Errorf("%d rounds, log %q", round, &log)
	}
	if err := run(t.Context(), []string{"-run", "nothing"}, &out, &log); err == nil {
		t.Error("a pattern without a match passed")
	}
}
