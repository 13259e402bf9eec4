package reconcile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm"
	"github.com/formthefog/formation/fogvm/boottime"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store"
)

// testLeases are short, and still many times what a busy machine takes to answer.
var testLeases = lease.Times{Lease: 4 * time.Second, Margin: 600 * time.Millisecond}

// fence is three machines, all of them voters, and one fenced replica.
type fence struct {
	*owner
	ms []*machine
}

func newFence(t *testing.T) *fence { return newContract(t, crdt.PartitionFence, 2) }

// newContract is a fence of another kind.
func newContract(t *testing.T, contract string, replicas int) *fence {
	t.Helper()
	h, l := newHub(), newLibrary()
	pack := l.add("web", store.RunConfig{Entrypoint: []string{"/web"}})
	f := &fence{ms: []*machine{newMachine(t, h, l, 1), newMachine(t, h, l, 2), newMachine(t, h, l, 3)}}
	a, err := crdt.NewAuthor(keyOf(200), network, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := crdt.Spec{
		Name: "web", Pack: pack, Replicas: replicas, Phase: crdt.PhaseRunning, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30,
		Partition: contract,
	}
	for _, m := range f.ms {
		s.Voters = append(s.Voters, m.key)
	}
	id, raws, err := a.Create(s)
	if err != nil {
		t.Fatal(err)
	}
	f.owner = &owner{t, a, id}
	f.submit(f.ms[0], raws)
	if contract == crdt.PartitionFence {
		f.watch()
	}
	return f
}

// runs says whether the machine's VM executes at this moment, by its keeper's word
// and the clock.
func (f *fence) runs(m *machine) (ready, executes bool) {
	for _, s := range m.vms.List() {
		if s.ID == f.id+"-0" && s.ShimPID != 0 {
			return s.Ready, !s.Fenced || boottime.Now() < s.HeldUntil
		}
	}
	return false, false
}

// watch sees to it until the test ends that never two VMs execute at once.
func (f *fence) watch() {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			n := 0
			for _, m := range f.ms {
				if _, executes := f.runs(m); executes {
					n++
				}
			}
			if n > 1 {
				f.t.Error("two VMs of a fenced instance execute at once")
				return
			}
		}
	}()
	f.t.Cleanup(func() {
		close(stop)
		<-ended
	})
}

// serves waits for a machine other than not whose replica is ready and executes.
func (f *fence) serves(what string, not *machine) (holder *machine) {
	f.t.Helper()
	within(f.t, 60*time.Second, what, func() error {
		var why []string
		for _, m := range f.ms {
			if ready, executes := f.runs(m); ready && executes && m != not {
				holder = m
				return nil
			}
			for _, c := range m.state.View().ClaimsBy(m.key) {
				why = append(why, fmt.Sprintf("%d: %s gen=%d %s", m.n, c.Phase, c.Generation, c.Reason))
			}
		}
		return fmt.Errorf("nobody runs it: %q", why)
	})
	return holder
}

// TestFence: one replica runs. The node that runs it is cut off: its VM pauses
// before another node's starts. When it comes back it gives up; and a drained
// node hands over.
func TestFence(t *testing.T) {
	f := newFence(t)
	first := f.serves("the replica runs", nil)
	was := first.vms.List()[0].HeldUntil
	within(t, 20*time.Second, "a renewal", func() error {
		if first.vms.List()[0].HeldUntil <= was {
			return errors.New("none")
		}
		return nil
	})

	first.end.setCut(true)
	within(t, 30*time.Second, "the cut-off VM pauses", func() error {
		for _, s := range first.vms.List() {
			if s.Ready || s.Phase != fogvm.Unhealthy {
				return fmt.Errorf("%+v", s)
			}
		}
		return nil
	})
	paused := boottime.Now()
	for _, m := range f.ms {
		if _, executes := f.runs(m); executes {
			t.Errorf("machine %d ran before the lease of the cut-off one had ended", m.n)
		}
	}
	second := f.serves("a takeover", first)
	t.Logf("taken over %v after the pause", boottime.Now()-paused)

	first.end.setCut(false)
	within(t, 60*time.Second, "the first gives up", func() error {
		if n := len(first.vms.List()); n != 0 {
			return fmt.Errorf("%+v; claims %+v; dead %v", first.vms.List(), first.state.View().Claims(f.id), first.prober.Dead())
		}
		return nil
	})
	if ready, executes := f.runs(second); !ready || !executes {
		t.Error("the second does not serve any more")
	}

	if err := second.rec.SetDraining(true); err != nil {
		t.Fatal(err)
	}
	start := boottime.Now()
	f.serves("a handover", second)
	t.Logf("handed over within %v", boottime.Now()-start)
}

// TestFenceWithoutMajority: with most of its voters gone a fenced instance stands
// still, until its owner signs new ones.
func TestFenceWithoutMajority(t *testing.T) {
	f := newFence(t)
	holder := f.serves("the replica runs", nil)
	if s := holder.leases.Stats(); s.Held != 1 || s.Paused != 0 {
		t.Errorf("of the holder: %+v", s)
	}
	granted := uint64(0)
	for _, m := range f.ms {
		granted += m.leases.Stats().Granted
	}
	if granted < 2 {
		t.Errorf("%d votes are counted of a majority of 3", granted)
	}
	for _, m := range f.ms {
		if m != holder {
			m.kill()
		}
	}
	within(t, 60*time.Second, "it stands still", func() error {
		if _, executes := f.runs(holder); executes {
			return errors.New("it runs")
		}
		for _, c := range holder.state.View().ClaimsBy(holder.key) {
			if c.Phase != crdt.ClaimStopped || c.Ready || c.Reason != "sees 1 of 3 voters" {
				return fmt.Errorf("%+v", c)
			}
		}
		return nil
	})
	if s := holder.leases.Stats(); s.Held != 0 || s.Paused != 1 || s.RenewalsFailed == 0 {
		t.Errorf("of the one that stands still: %+v", s)
	}
	f.set(holder, func(s *crdt.Spec) { s.Voters = []stmt.Key{holder.key} })
	f.serves("it runs by the new voters", nil)
}

// TestStopMinority: the node that is cut off stops its replica and keeps the disk,
// the others run one; when it comes back the surplus ends.
func TestStopMinority(t *testing.T) {
	f := newContract(t, crdt.PartitionStopMinority, 1)
	first := f.serves("the replica runs", nil)
	first.end.setCut(true)
	within(t, 60*time.Second, "the minority stops", func() error {
		vms := first.vms.List()
		if len(vms) != 1 || vms[0].Phase != fogvm.Stopped {
			return fmt.Errorf("%+v", vms)
		}
		for _, c := range first.state.View().ClaimsBy(first.key) {
			if c.Phase != crdt.ClaimStopped || c.Reason != "sees 1 of 3 voters" {
				return fmt.Errorf("%+v", c)
			}
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(first.dir, "vms", first.vms.List()[0].ID, "disk.raw")); err != nil {
		t.Errorf("its disk: %v", err)
	}
	second := f.serves("the majority takes over", first)
	first.end.setCut(false)
	within(t, 60*time.Second, "the first gives up", func() error {
		if vms := first.vms.List(); len(vms) != 0 {
			return fmt.Errorf("%+v", vms)
		}
		return nil
	})
	if ready, executes := f.runs(second); !ready || !executes {
		t.Error("the second does not serve any more")
	}
}

// A voter answers by its own state: nothing that a request says makes up for a
// claim or a spec that is not there, and nonsense ends the stream.
func TestHostileHolders(t *testing.T) {
	f := newFence(t)
	holder := f.serves("the replica runs", nil)
	var others []*machine
	for _, m := range f.ms {
		if m != holder {
			others = append(others, m)
		}
	}
	voter, thief := others[0], others[1]
	spec, _ := voter.state.View().Instance(f.id)
	doc, err := crdt.ParseDocID(f.id)
	if err != nil {
		t.Fatal(err)
	}
	good := leaseRequest{Instance: doc, Set: lease.SetOf(spec.Term, spec.Voters), Nonce: 7}
	with := func(f func(*leaseRequest)) leaseRequest { r := good; f(&r); return r }
	before := voter.leases.Stats().Denied
	for name, r := range map[string]leaseRequest{
		"without a claim":           good,
		"who says it holds already": with(func(r *leaseRequest) { r.Held = true }),
		"of other voters":           with(func(r *leaseRequest) { r.Set[0]++ }),
		"of no instance":            with(func(r *leaseRequest) { r.Instance[0]++ }),
		"who gives back another's":  with(func(r *leaseRequest) { r.Release = true }),
	} {
		c, err := thief.end.Open(t.Context(), PeerOf(voter.key), ProtoLease)
		if err != nil {
			t.Fatal(err)
		}
		var a leaseAnswer
		if err := errors.Join(writeLeaseFrame(c, r), readLeaseFrame(c, &a), c.Close()); err != nil || a.Granted || a.Reason == "" {
			t.Errorf("a holder %s: %+v, %v", name, a, err)
		}
	}
	if n := voter.leases.Stats().Denied - before; n < 4 { // what gives back asks for nothing
		t.Errorf("%d refusals are counted, of 4", n)
	}
	for name, b := range map[string][]byte{
		"nothing": {0, 0, 0, 0}, "much": binary.BigEndian.AppendUint32(nil, maxLeaseFrame+1), "no map": {0, 0, 0, 1, 0xff},
		"another ID": {0, 0, 0, 7, 0xa1, 0x64, 'i', 'n', 's', 't', 0x40},
	} {
		c, err := thief.end.Open(t.Context(), PeerOf(voter.key), ProtoLease)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(b) // the voter may have hung up already
		if n, err := io.Copy(io.Discard, c); n != 0 {
			t.Errorf("%s is answered: %d bytes, %v", name, n, err)
		}
	}
	if ready, executes := f.runs(holder); !ready || !executes {
		t.Error("the holder has lost it")
	}
}

// What a voter kept is what it finds; what is torn, flipped or of another version
// counts as lost.
func TestVotesAreKept(t *testing.T) {
	dir := t.TempDir()
	if m, err := loadVotes(dir); m != nil || err != nil {
		t.Fatalf("nothing: %v, %v", m, err)
	}
	want := lease.Memory{Boot: "b", Fresh: 5, Votes: []lease.Vote{
		{Instance: "web", Set: lease.SetID{1}, Holder: stmt.Key{2}, Nonce: 1 << 60, Until: 9, Wait: 8, Term: 3},
	}}
	if err := saveVotes(dir, want); err != nil {
		t.Fatal(err)
	}
	if m, err := loadVotes(dir); err != nil || fmt.Sprint(*m) != fmt.Sprint(want) {
		t.Errorf("got %+v, %v", m, err)
	}
	path := filepath.Join(dir, votesFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		flipped := bytes.Clone(whole)
		flipped[i] ^= 1
		for _, bad := range [][]byte{whole[:i], flipped} {
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			if m, err := loadVotes(dir); m != nil || err != nil {
				t.Fatalf("%d bytes, spoilt at %d: %+v, %v", len(bad), i, m, err)
			}
		}
	}
	if err := saveVotes(filepath.Join(dir, "none"), want); err == nil {
		t.Error("kept in a folder that is not there")
	}
}

// What is said on the wire is what docs/wire.md says of it: examples for a second
// implementation.
func TestLeaseFrames(t *testing.T) {
	voters := []stmt.Key{{3}, {1}, {2}}
	set := lease.SetOf(7, voters)
	var out strings.Builder
	fmt.Fprintf(&out, "set of term 7 and the keys 03…00, 01…00, 02…00: %x\n", set[:])
	for _, v := range []struct {
		name  string
		frame any
	}{
		{"request", leaseRequest{Instance: crdt.DocID{1, 2, 3}, Set: set, Nonce: 258}},
		{"request of who holds a lease", leaseRequest{Instance: crdt.DocID{1, 2, 3}, Set: set, Nonce: 259, Held: true}},
		{"release", leaseRequest{Instance: crdt.DocID{1, 2, 3}, Set: set, Nonce: 259, Release: true}},
		{"granted", leaseAnswer{Granted: true}},
		{"busy", leaseAnswer{Busy: true, Reason: "another node may still hold the lease"}},
		{"later", leaseAnswer{Later: true, Reason: "a later claim on the slot is known"}},
	} {
		var b bytes.Buffer
		if err := writeLeaseFrame(&b, v.frame); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s: %x\n", v.name, b.Bytes())
	}
	path := filepath.Join("testdata", "lease-frames.txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("%s differs; this version says\n%s", path, out.String())
	}
}

// FuzzLeaseFrame: a frame is refused, or means one request.
func FuzzLeaseFrame(f *testing.F) {
	var b bytes.Buffer
	if err := writeLeaseFrame(&b, leaseRequest{Nonce: 7, Held: true}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 1, 0xa0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, frame []byte) {
		var r, same leaseRequest
		if readLeaseFrame(bytes.NewReader(frame), &r) != nil {
			return
		}
		var again bytes.Buffer
		if err := writeLeaseFrame(&again, r); err != nil {
			t.Fatal(err)
		}
		if err := readLeaseFrame(&again, &same); err != nil || same != r {
			t.Fatalf("%+v, read again %+v, %v", r, same, err)
		}
	})
}

// A node that woke where nobody answers, and so decides nothing, stops what its contract does
// not let run without the voters as soon as it has found them dead; no claim says
// so before it decides again. What it keeps otherwise is left alone.
func TestStopMinorityWhileNothingIsDecided(t *testing.T) {
	f := newContract(t, crdt.PartitionStopMinority, 1)
	holder := f.serves("the replica runs", nil)
	holder.deciding(true)
	pack := holder.lib.add("keeps", store.RunConfig{})
	id, raws, err := f.a.Create(crdt.Spec{Name: "keeps", Pack: pack, Replicas: 3, VCPU: 1, MemoryBytes: 256 << 20, DiskBytes: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	f.submit(holder, raws)
	keeps := &owner{t, f.a, id}
	keeps.waitReady(holder, 3)

	holder.clock.stop(0)
	holder.end.setMute(true)
	holder.clock.stop(time.Hour)
	holder.look(1)
	if holder.rec.Deciding() {
		t.Fatal("it decides at once")
	}
	holder.gate.mu.Lock()
	writes := holder.gate.writes
	holder.gate.mu.Unlock()
	woke, advanced := boottime.Now(), time.Duration(0)
	within(t, 60*time.Second, "the minority stops", func() error {
		// As time passes, but for less than it takes to decide alone.
		if d := boottime.Now() - woke - advanced; advanced+d < 25*time.Second {
			holder.clock.stop(d)
			advanced += d
		}
		holder.rec.Kick()
		for _, s := range holder.vms.List() {
			switch {
			case s.ID == plan.VMID(f.id, 0) && s.Phase != fogvm.Stopped:
				return fmt.Errorf("%v: %+v", advanced, s)
			case s.ID != plan.VMID(f.id, 0) && !s.Ready:
				t.Fatalf("another VM does not run on: %+v", s)
			}
		}
		return nil
	})
	if n := len(holder.vms.List()); n != 2 || holder.rec.Deciding() {
		t.Errorf("%d VMs are left of 2, it decides: %v", n, holder.rec.Deciding())
	}
	holder.gate.mu.Lock()
	if n := holder.gate.writes; n != writes {
		t.Errorf("claims were written %d times", n-writes)
	}
	holder.gate.mu.Unlock()
	holder.end.setMute(false)
	holder.deciding(true)
	f.serves("the replica runs again, here or elsewhere", nil)
}
