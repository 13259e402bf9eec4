package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// stateEnv tells a child process of bench what to measure of the state: memory
// is that of a process, so each measurement has one of its own.
const stateEnv = "FORMATION_BENCH_STATE"

// stateTask is what a child process is to do.
type stateTask struct {
	Role string // load | update | claim | rest | history
	Dir  string // scratch; its folder "state" is that of a replica
}

// stateMain runs a child's task, if this process is one.
func stateMain() (isChild bool) {
	raw := os.Getenv(stateEnv)
	if raw == "" {
		return false
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var t stateTask
	err := json.Unmarshal([]byte(raw), &t)
	var values map[string]float64
	if err == nil {
		roles := map[string]func(context.Context, *stateWorld) (map[string]float64, error){
			"load": t.load, "update": t.update, "claim": t.claim, "rest": t.rest, "history": t.history, "burst": t.burst,
		}
		values, err = roles[t.Role](ctx, newStateWorld())
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(values)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench state:", err)
		os.Exit(1)
	}
	return true
}

// runState runs a child and returns what it measured.
func runState(ctx context.Context, e *env, t stateTask) (map[string]float64, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	task, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), stateEnv+"="+string(task))
	cmd.Stderr = e.Log
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("state %s: %w", t.Role, err)
	}
	var values map[string]float64
	if err := json.Unmarshal(bytes.TrimSpace(out), &values); err != nil {
		return nil, fmt.Errorf("state %s: %w", t.Role, err)
	}
	return values, nil
}

// restingMiB is this process's resident memory after what it does not need has
// gone back to the system.
func restingMiB() (float64, error) {
	debug.FreeOSMemory()
	return residentMiB(os.Getpid())
}

// load opens a replica of the log in Dir/state, and compares the time with that of
// verifying the same signatures, spread over the cores as well.
func (t stateTask) load(ctx context.Context, w *stateWorld) (map[string]float64, error) {
	empty, err := crdt.Open(w.config(0, filepath.Join(t.Dir, fmt.Sprint("empty-", os.Getpid()))))
	if err != nil {
		return nil, err
	}
	before, err := restingMiB()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	r, err := crdt.Open(w.config(0, filepath.Join(t.Dir, "state")))
	if err != nil {
		return nil, err
	}
	instances := len(r.View().Instances())
	took := time.Since(start)
	held := r.Stats().Held
	after, err := askedMiB(ctx, r)
	if err := errors.Join(err, r.Close(), empty.Close()); err != nil {
		return nil, err
	}
	raws, err := logStatements(filepath.Join(t.Dir, "state"))
	if err != nil {
		return nil, err
	}
	if held != len(raws) || instances != stateInstances {
		return nil, fmt.Errorf("%d of %d statements held, %d instances", held, len(raws), instances)
	}
	verify, err := verifyAll(w, raws)
	if err != nil {
		return nil, err
	}
	return map[string]float64{"ratio": took.Seconds() / verify.Seconds(), "rss": after - before, "seconds": took.Seconds()}, nil
}

// askedMiB runs r and has a peer ask it what it holds, and returns this process's
// memory after that: what anti-entropy is answered from is made when it is asked
// for, and then kept.
func askedMiB(ctx context.Context, r *crdt.Replica) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	s := answering{handler: make(chan func(context.Context, peer.ID, net.Conn), 1)}
	r.SetTransport(nil, s)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	ours, theirs := net.Pipe()
	if err := ours.Close(); err != nil {
		return 0, err
	}
	(<-s.handler)(ctx, peer.ID(stmt.KeyOf(stateKey("node", 1)).PeerID()), theirs)
	if r.Stats().FailedSessions == 0 {
		return 0, errors.New("the replica was not asked")
	}
	return restingMiB()
}

// answering is streams on which nobody can be reached.
type answering struct {
	handler chan func(context.Context, peer.ID, net.Conn)
}

func (answering) Peers() []peer.ID { return nil }

func (answering) Open(context.Context, peer.ID, string) (net.Conn, error) {
	return nil, errors.New("nobody is there")
}

func (s answering) Handle(_ string, h func(context.Context, peer.ID, net.Conn)) { s.handler <- h }

// verifyAll is how long it takes to verify just the signatures of statements, all
// cores at work.
func verifyAll(w *stateWorld, raws [][]byte) (time.Duration, error) {
	type signed struct{ key, msg, sig []byte }
	all := make([]signed, 0, len(raws))
	for _, raw := range raws {
		st, err := stmt.Verify(raw, w.net)
		if err != nil {
			return 0, err
		}
		// 82, then two byte strings; the second has 64 bytes (docs/wire.md §3).
		payload := raw[1 : len(raw)-ed25519.SignatureSize-2]
		payload = payload[map[byte]int{0x58: 2, 0x59: 3}[payload[0]]:]
		msg := append([]byte("formation/stmt/1\x00"+string(st.Kind)+"\x00"), payload...)
		all = append(all, signed{st.Author[:], msg, raw[len(raw)-ed25519.SignatureSize:]})
	}
	runtime.GC()
	start := time.Now()
	var wg sync.WaitGroup
	bad := make([]int, runtime.GOMAXPROCS(0))
	for i := range bad {
		wg.Go(func() {
			for at := i; at < len(all); at += len(bad) {
				if !ed25519.Verify(all[at].key, all[at].msg, all[at].sig) {
					bad[i]++
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if n := slices.Max(bad); n > 0 {
		return 0, fmt.Errorf("%d signatures do not verify: the bench misreads the statements", n)
	}
	return took, nil
}

// update measures one change of an instance by its owner, from the Author to the
// next View, beside stateInstances instances, for all instances of some owners; Dir
// is on a disk whose fsync is free.
func (t stateTask) update(ctx context.Context, w *stateWorld) (map[string]float64, error) {
	const owners = 20
	r, err := crdt.Open(w.config(0, filepath.Join(t.Dir, "state")))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	r.View()
	var signs, updates []float64
	for o := range owners {
		key := stateKey("owner", o)
		a, err := crdt.NewAuthor(key, w.net, r.OwnerStatements(stmt.KeyOf(key)))
		if err != nil {
			return nil, err
		}
		a.Now = func() time.Time { return time.Now().Add(time.Hour) } // what was made for this has been at rest
		for _, spec := range a.Instances() {
			sign, update, err := updateOne(ctx, r, a, key, spec)
			if err != nil {
				return nil, err
			}
			signs, updates = append(signs, sign), append(updates, update)
		}
	}
	return map[string]float64{"ratio": median(updates) / median(signs)}, nil
}

// updateOne returns the seconds that a signature and a change of spec take.
func updateOne(ctx context.Context, r *crdt.Replica, a *crdt.Author, key ed25519.PrivateKey, spec crdt.Spec) (sign, update float64, err error) {
	msg := make([]byte, 400)
	copy(msg, spec.ID)
	start := time.Now()
	ed25519.Sign(key, msg)
	sign = time.Since(start).Seconds()
	start = time.Now()
	raws, err := a.Set(spec.ID, func(s *crdt.Spec) { s.Restart++ })
	if err == nil {
		_, err = r.Submit(ctx, raws...)
	}
	if err != nil {
		return 0, 0, err
	}
	v := r.View()
	update = time.Since(start).Seconds()
	if now, ok := v.Instance(spec.ID); !ok || now.Restart != spec.Restart+1 {
		return 0, 0, fmt.Errorf("instance %s does not show its change", spec.ID)
	}
	return sign, update, nil
}

// claim measures one change that a node makes of its own claims, to the next View,
// with stateInstances instances held and claimsOfOne of them on the node.
func (t stateTask) claim(ctx context.Context, w *stateWorld) (map[string]float64, error) {
	const claimsOfOne = 30
	c := w.config(0, filepath.Join(t.Dir, "state"))
	r, err := crdt.Open(c)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var claims []crdt.Claim
	for _, s := range r.View().Instances()[:claimsOfOne] {
		claims = append(claims, crdt.Claim{Instance: s.ID, Owner: s.Owner, Generation: 1, Phase: crdt.ClaimRunning, Pack: s.Pack})
	}
	if err := r.SetClaims(ctx, claims); err != nil {
		return nil, err
	}
	self := stmt.KeyOf(c.Key)
	r.View()
	var signs, changes []float64
	msg := make([]byte, 400)
	for i := range 10 * claimsOfOne {
		msg[0]++
		start := time.Now()
		ed25519.Sign(c.Key, msg)
		signs = append(signs, time.Since(start).Seconds())
		claims[i%claimsOfOne].Ready = !claims[i%claimsOfOne].Ready
		start = time.Now()
		if err := r.SetClaims(ctx, claims); err != nil {
			return nil, err
		}
		v := r.View()
		changes = append(changes, time.Since(start).Seconds())
		if got := v.ClaimsBy(self); len(got) != claimsOfOne {
			return nil, fmt.Errorf("%d claims of the node show", len(got))
		}
	}
	return map[string]float64{"ratio": median(changes) / median(signs)}, nil
}
