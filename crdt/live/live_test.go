package live

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden transcripts")

const tick = 250 * time.Millisecond

// bench is one detector and the world around it, driven by the transcripts'
// commands.
type bench struct {
	d       *Detector
	now     time.Duration
	answers map[stmt.Key]bool // who answers pings
	direct  map[stmt.Key]bool // whose answers reach us directly
	out     strings.Builder
}

func name(k stmt.Key) string { return strings.TrimRight(string(k[:]), "\x00") }

func keys(names string) []stmt.Key {
	var out []stmt.Key
	for _, n := range strings.Split(names, ",") {
		var k stmt.Key
		copy(k[:], n)
		if n != "" {
			out = append(out, k)
		}
	}
	return out
}

func set(ks []stmt.Key) map[stmt.Key]bool {
	m := map[stmt.Key]bool{}
	for _, k := range ks {
		m[k] = true
	}
	return m
}

// step feeds an event and plays the network's part at once.
func (b *bench) step(ev Event, pings bool) {
	for _, e := range b.d.Step(b.now, ev) {
		switch e := e.(type) {
		case Changed:
			fmt.Fprintf(&b.out, "%6.2fs %s is %s\n", b.now.Seconds(), name(e.Key), e.State)
		case Tell:
			what := "suspected"
			if e.Alive {
				what = "alive"
			}
			fmt.Fprintf(&b.out, "%6.2fs tells that %s is %s in %d.%d\n", b.now.Seconds(), name(e.Peer), what, e.Epoch, e.Count)
		case Ping:
			if pings {
				fmt.Fprintf(&b.out, "%6.2fs ping %s\n", b.now.Seconds(), name(e.To))
			}
			if b.answers[e.To] && b.direct[e.To] {
				b.step(Contact{e.To}, pings)
			}
		case PingReq:
			if pings {
				fmt.Fprintf(&b.out, "%6.2fs ask %s to ping %s\n", b.now.Seconds(), names(e.Via), name(e.Target))
			}
			for _, v := range e.Via {
				if b.answers[v] && b.direct[v] {
					b.step(Contact{v}, pings)
					if b.answers[e.Target] {
						b.step(Contact{e.Target}, pings)
					}
				}
			}
		}
	}
}

func names(ks []stmt.Key) string {
	var out []string
	for _, k := range ks {
		out = append(out, name(k))
	}
	return strings.Join(out, ",")
}

// run executes one command:
//
//	peers ALL [INTEREST]   who there is, and who matters
//	epochs NAMES NAMES     the same, and all are in boot epoch 7, this node too
//	answers NAMES          who is up
//	direct NAMES           whose answers reach us without a helper
//	run DURATION           ticks; "trace DURATION" shows pings too
//	stall DURATION         no step for so long
//	contact NAME           a message of NAME arrives
//	hint NAME NAME WORD E C  the first says that the second is suspected or alive
//	                       in incarnation E.C; pings that follow are shown
//	status                 what is held of every peer
func (b *bench) run(t *testing.T, line string) {
	t.Helper()
	f := strings.Fields(line)
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	switch f[0] {
	case "peers":
		b.step(Peers{All: keys(arg(1)), Interest: keys(arg(2))}, false)
	case "epochs":
		epochs := map[stmt.Key]uint64{}
		for _, k := range keys(arg(1)) {
			epochs[k] = 7
		}
		epochs[b.d.self] = 7
		b.step(Peers{All: keys(arg(1)), Interest: keys(arg(2)), Epochs: epochs}, false)
	case "hint":
		var inc Incarnation
		if _, err := fmt.Sscan(arg(4)+" "+arg(5), &inc.Epoch, &inc.Count); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		b.step(Heard{keys(arg(1))[0], Hint{Peer: keys(arg(2))[0], Alive: arg(3) == "alive", Incarnation: inc}}, true)
	case "answers":
		b.answers = set(keys(arg(1)))
	case "direct":
		b.direct = set(keys(arg(1)))
	case "contact":
		b.step(Contact{keys(arg(1))[0]}, false)
	case "run", "trace", "stall":
		d, err := time.ParseDuration(arg(1))
		if err != nil {
			t.Fatal(err)
		}
		if f[0] == "stall" {
			b.now += d
			return
		}
		for end := b.now + d; b.now < end; {
			b.now += tick
			b.step(Tick{}, f[0] == "trace")
		}
	case "status":
		for _, k := range b.d.keys {
			if k == b.d.self {
				continue
			}
			s := b.d.Status(k)
			fmt.Fprintf(&b.out, "%6.2fs %s: %s since %.2fs, heard of at %.2fs\n", b.now.Seconds(), name(k), s.State, s.Since.Seconds(), s.Contact.Seconds())
		}
		fmt.Fprintf(&b.out, "%6.2fs doubting: %v\n", b.now.Seconds(), b.d.Doubting())
	default:
		t.Fatalf("unknown command %q", line)
	}
}

// The transcripts in testdata are the specification, readable: commands begin
// with "> ", what the detector did follows. -rewrite makes them anew.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			b := &bench{d: New(keys("me")[0], Config{}, 1)}
			sc := bufio.NewScanner(bytes.NewReader(want))
			for sc.Scan() {
				if line := sc.Text(); strings.HasPrefix(line, "#") {
					b.out.WriteString(line + "\n")
				} else if cmd, ok := strings.CutPrefix(line, "> "); ok {
					b.out.WriteString(line + "\n")
					b.run(t, cmd)
				}
			}
			if *rewrite {
				if err := os.WriteFile(file, []byte(b.out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got := b.out.String(); got != string(want) {
				t.Errorf("transcript differs (run with -rewrite and review):\n%s", got)
			}
		})
	}
}

// A killed node is dead in about five seconds, wherever in the second it dies.
func TestDetectionTime(t *testing.T) {
	for phase := range 8 {
		all := keys("a,b,c,d")
		b := &bench{d: New(keys("me")[0], Config{}, uint64(phase)), answers: set(all), direct: set(all)}
		b.step(Peers{All: all, Interest: keys("a")}, false)
		for range 40 + phase {
			b.now += tick
			b.step(Tick{}, false)
		}
		killed := b.now
		delete(b.answers, keys("a")[0])
		for b.d.Status(keys("a")[0]).State != Dead {
			b.now += tick
			b.step(Tick{}, false)
			if b.now-killed > 20*time.Second {
				t.Fatal("not detected")
			}
		}
		if took := b.now - killed; took < 4*time.Second || took > 5500*time.Millisecond {
			t.Errorf("phase %d: detected after %s, want 4 to 5.5 s", phase, took)
		}
	}
}

// An hour of lost answers and stalls gives no false death: every ping, request
// and answer is lost with 10 %, and everyone, the observer too, now and then
// stops for up to 3 seconds.
func TestNoFalseDeaths(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	all := keys("a,b,c,d,e,f")
	d := New(keys("me")[0], Config{}, seed)
	d.Step(0, Peers{All: all, Interest: all[:3]})
	lost := func() bool { return rng.IntN(10) == 0 }
	stalled := map[stmt.Key]time.Duration{}
	type answer struct {
		at  time.Duration
		key stmt.Key
	}
	var wire []answer
	reply := func(now time.Duration, k stmt.Key) {
		if rng.IntN(5) != 0 { // either the question or the answer is lost
			wire = append(wire, answer{max(now, stalled[k]) + time.Duration(rng.IntN(200))*time.Millisecond, k})
		}
	}
	suspicions := 0
	for now := tick; now < time.Hour; now += tick {
		for _, k := range all {
			if rng.IntN(400) == 0 {
				stalled[k] = now + time.Duration(rng.IntN(3000))*time.Millisecond
			}
		}
		if rng.IntN(400) == 0 {
			now += time.Duration(rng.IntN(12)) * tick // the observer itself
		}
		var evs []Event
		wire = slices.DeleteFunc(wire, func(a answer) bool {
			if a.at <= now {
				evs = append(evs, Contact{a.key})
			}
			return a.at <= now
		})
		for _, ev := range append(evs, Tick{}) {
			for _, e := range d.Step(now, ev) {
				switch e := e.(type) {
				case Ping:
					reply(now, e.To)
				case PingReq:
					for _, v := range e.Via {
						reply(now, v)
						if !lost() {
							reply(now, e.Target)
						}
					}
				case Changed:
					if e.State == Dead {
						t.Fatalf("seed %d: %s declared dead at %s", seed, name(e.Key), now)
					}
					if e.State == Suspect {
						suspicions++
					}
				}
			}
		}
	}
	if suspicions == 0 {
		t.Fatal("nobody was ever suspected: the test proves nothing")
	}
	t.Logf("%d suspicions, all refuted", suspicions)
}

// The cost of a second is bounded, however many peers there are.
func TestCostIsFlat(t *testing.T) {
	for _, n := range []int{20, 200, 2000} {
		var all []stmt.Key
		for i := range n {
			all = append(all, stmt.Key{1, byte(i >> 8), byte(i)})
		}
		d := New(keys("me")[0], Config{}, 1)
		d.Step(0, Peers{All: all, Interest: all[:4]})
		pings := 0
		for now := tick; now <= 60*time.Second; now += tick {
			for _, e := range d.Step(now, Tick{}) {
				if p, ok := e.(Ping); ok {
					pings++
					d.Step(now, Contact{p.To})
				}
			}
		}
		if perSecond := float64(pings) / 60; perSecond > 5.1 {
			t.Errorf("%d peers: %.1f pings a second, want at most 4 + 1", n, perSecond)
		}
	}
}
