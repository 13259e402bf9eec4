// Package regions is where the machines of a fleet are, and how long messages take
// between them: 19 data-centre regions with the number of a real fleet's machines in
// each. Regions, weights and latency model are those of superfly/corrosion's own
// simulator (crates/plum-foca/tests/sim.rs at 0d0dd7a6, Apache-2.0), so that figures
// compare; there it is said to be within about 15 % of round trips that were
// measured. It is a model of distance alone: no route, queue or last mile.
package regions

import (
	"math"
	"math/rand/v2"
	"time"
)

// Region is a place with data centres.
type Region struct {
	Name     string
	Lat, Lon float64 // degrees
	Weight   int     // machines of the fleet that are there
}

var all = [...]Region{
	{"ams", 52.31, 4.76, 274},
	{"arn", 59.65, 17.92, 20},
	{"bom", 19.09, 72.87, 33},
	{"cdg", 49.01, 2.55, 175},
	{"dfw", 32.90, -97.04, 528},
	{"ewr", 40.69, -74.17, 245},
	{"fra", 50.03, 8.57, 347},
	{"gru", -23.43, -46.47, 111},
	{"iad", 38.94, -77.46, 442},
	{"jnb", -26.14, 28.25, 16},
	{"lax", 33.94, -118.41, 306},
	{"lhr", 51.47, -0.45, 74},
	{"nrt", 35.77, 140.39, 76},
	{"ord", 41.97, -87.91, 559},
	{"qmx", 19.43, -99.13, 42},
	{"sin", 1.36, 103.99, 209},
	{"sjc", 37.36, -121.93, 682},
	{"syd", -33.95, 151.18, 200},
	{"yyz", 43.68, -79.63, 114},
}

// Count is how many regions there are; they are numbered from 0, by name.
const Count = len(all)

// Jitter is the share of its least time that a message takes longer at most, drawn
// uniformly.
const Jitter = 0.15

var (
	roundTrips [Count][Count]time.Duration
	total      int
)

func init() {
	for i := range all {
		total += all[i].Weight
		for j := range all {
			roundTrips[i][j] = roundTrip(i, j)
		}
	}
}

// Of is the region of a number.
func Of(i int) Region { return all[i] }

// RoundTrip is the least that a message and its answer take between two regions.
func RoundTrip(i, j int) time.Duration { return roundTrips[i][j] }

// Pick is the region of the machine at a share u of the fleet, 0 <= u < 1.
func Pick(u float64) int {
	at := int(u * float64(total))
	for i := range all {
		if at -= all[i].Weight; at < 0 {
			return i
		}
	}
	return Count - 1
}

// Places are the regions of so many nodes, by number: machines of the fleet, drawn by
// a seed.
func Places(nodes int, seed uint64) []int {
	rng := rand.New(rand.NewPCG(seed, 0x77616e))
	at := make([]int, nodes)
	for i := range at {
		at[i] = Pick(rng.Float64())
	}
	return at
}

func roundTrip(i, j int) time.Duration {
	if i == j {
		return time.Millisecond
	}
	return time.Duration(math.Floor(4+distance(all[i], all[j])/75)) * time.Millisecond
}

// earth is its mean radius in kilometres.
const earth = 6371

// distance is the kilometres of the great circle between two places.
func distance(a, b Region) float64 {
	rad := func(deg float64) float64 { return deg * math.Pi / 180 }
	sin := func(x float64) float64 { return math.Sin(x / 2) }
	lat, lon := sin(rad(b.Lat-a.Lat)), sin(rad(b.Lon-a.Lon))
	h := lat*lat + math.Cos(rad(a.Lat))*math.Cos(rad(b.Lat))*lon*lon
	return 2 * earth * math.Asin(math.Min(1, math.Sqrt(h)))
}
