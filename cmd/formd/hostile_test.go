package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Bounds of what an attack may cost a node.
const (
	// hostileHeap is how much the heap of a node may grow, garbage aside.
	hostileHeap = 48 << 20
	// hostileHeld is how many statements an attack of some seconds may have a
	// node hold: what the rates let through.
	hostileHeld = 20_000
	// hostileRounds is how many sessions of anti-entropy a node may need before
	// it has what an honest owner said meanwhile.
	hostileRounds = 8
)

// attackReport is a line of scripts/hostile.
type attackReport struct {
	Attack, Reason string
	Peer           string
	Offence, Admit bool
	Frozen         string
	Targets        []struct {
		Peer           string
		Admitted, Cut  bool
		Refusal, Again string
		Sent           int
	}
}

// metrics are the node's figures; garbage is collected first.
func (p *proc) metrics() map[string]float64 {
	p.t.Helper()
	c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.socket())
	}}, Timeout: time.Minute}
	defer c.CloseIdleConnections()
	get := func(path string) string {
		res, err := c.Get("http://formd" + path)
		if err != nil {
			p.t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != http.StatusOK {
			p.t.Fatalf("%s: %s, %v", path, res.Status, err)
		}
		return string(b)
	}
	get("/debug/pprof/heap?gc=1")
	out := map[string]float64{}
	for line := range strings.Lines(get("/metrics")) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[name] = v
		}
	}
	return out
}

// buildHostile builds scripts/hostile.
func buildHostile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hostile")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/formthefog/formation/scripts/hostile").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// Peers that attack by every rule of the wire format are refused, named, counted
// and, where no honest peer acts so, kept out, while an honest owner goes on.
func TestHostilePeers(t *testing.T) {
	if testing.Short() {
		t.Skip("attacks take half a minute")
	}
	program := buildHostile(t)
	procs := swarm(t, 3)
	ctx := context.Background()
	self, err := procs[0].local.Node(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// A member that the root revokes before the attack.
	revoked := newKey(t)
	ticket, err := stmt.ParseTicket(procs[0].ticket())
	if err != nil {
		t.Fatal(err)
	}
	member, err := ticket.Join(stmt.KeyOf(revoked), stmt.RoleNode, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := procs[0].local.Submit(ctx, [][]byte{member}); err != nil {
		t.Fatal(err)
	}
	if _, err := procs[0].local.Forget(ctx, stmt.KeyOf(revoked)); err != nil {
		t.Fatal(err)
	}
	honest := newHonest(t, procs, stmt.NewNetworkID(self.Network.Name, self.Network.Root))
	honest.change()
	before := make([]map[string]float64, len(procs))
	for i, p := range procs {
		before[i] = p.metrics()
	}

	deleted, said := honest.deleted()
	var dump []string
	for _, raw := range said {
		dump = append(dump, hex.EncodeToString(raw))
	}
	args := []string{
		"--ticket", procs[0].ticket(), "--revoked", hex.EncodeToString(revoked.Seed()), "--deleted", strings.Join(dump, ","),
		"--victim", honest.id, "--owner", stmt.KeyOf(honest.owner).String(),
	}
	for _, p := range procs {
		args = append(args, p.addrs[0])
	}
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test failed
	reports := make(chan string)
	go func() {
		defer close(reports)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			reports <- sc.Text()
		}
	}()
	for more := true; more; {
		select {
		case line, ok := <-reports:
			if more = ok; !ok {
				break
			}
			var r attackReport
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			checkAttack(t, procs, r)
		default: // attacked or not, every node hears it, and acts on it
			honest.change()
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	t.Logf("the honest instance went through %d changes meanwhile", honest.turn)
	honest.change()
	honest.gone(deleted)
	honest.remove()

	// Whoever was told what holds in the end need not hear of the rest.
	within(t, time.Minute, "a node that says two things is counted", func() error {
		missing := 0
		for i, p := range procs {
			if name := equivocations("node"); p.metrics()[name] == before[i][name] {
				missing++
			}
		}
		if missing > 1 {
			return fmt.Errorf("%d of %d nodes have counted none", missing, len(procs))
		}
		return nil
	})
	for i, p := range procs {
		after := p.metrics()
		grown := func(name string) float64 { return after[name] - before[i][name] }
		t.Logf("%s: heap %+.1f MiB, resident %.0f MiB, at most %d, %.0f statements held, %.0f wait, refused %.0f", p.key,
			grown("go_memstats_heap_inuse_bytes")/(1<<20), after["process_resident_memory_bytes"]/(1<<20), p.peak()>>20,
			after["formd_statements_held"], after["formd_statements_pending"], sum(after, "formd_statements_refused_total{"))
		if g := grown("go_memstats_heap_inuse_bytes"); g > hostileHeap {
			t.Errorf("%s: the heap grew by %.0f MiB", p.key, g/(1<<20))
		}
		if peak := p.peak(); peak > hostilePeak {
			t.Errorf("%s: it had %d MiB", p.key, peak>>20)
		}
		if after["formd_statements_held"] > hostileHeld || after["formd_statements_pending"] > hostileHeld {
			t.Errorf("%s: %v statements held, %v wait", p.key, after["formd_statements_held"], after["formd_statements_pending"])
		}
		for _, reason := range []string{"signature", "shape", "size", "network", "protocol", "blocks"} {
			if name := fmt.Sprintf("formd_peer_offences_total{reason=%q}", reason); grown(name) == 0 {
				t.Errorf("%s: no offence is counted as %s", p.key, reason)
			}
		}
		for _, reason := range []string{"stranger", "signature", "shape", "authority", "expired"} {
			if name := fmt.Sprintf("formd_admissions_refused_total{reason=%q}", reason); grown(name) == 0 {
				t.Errorf("%s: no connection is counted as refused for %s", p.key, reason)
			}
		}
		for _, reason := range []string{"rate", "stale", "authority"} {
			if name := fmt.Sprintf("formd_statements_refused_total{reason=%q}", reason); grown(name) == 0 {
				t.Errorf("%s: nothing is counted as refused for %s", p.key, reason)
			}
		}
		if grown(equivocations("spec")) == 0 {
			t.Errorf("%s: no spec that says two things is counted", p.key)
		}
		for _, reason := range []string{refusedAuthority, refusedSize, refusedShape, refusedTime, refusedRate} {
			if name := fmt.Sprintf("formd_requests_refused_total{reason=%q}", reason); grown(name) == 0 {
				t.Errorf("%s: no request is counted as refused for %s", p.key, reason)
			}
		}
		if grown("formd_streams_refused_total") == 0 || after["formd_peers_refused"] == 0 {
			t.Errorf("%s: %v streams and %v peers refused", p.key, after["formd_streams_refused_total"], after["formd_peers_refused"])
		}
		if peers := p.nodePeers(); peers < len(procs)-1 {
			t.Errorf("%s has %d peers left of %d: it keeps out honest ones", p.key, peers, len(procs)-1)
		}
	}
}

// equivocations is what counts contents of which one key signed two.
func equivocations(kind string) string {
	return fmt.Sprintf("formd_equivocations_total{kind=%q}", kind)
}

// nodePeers is how many of the other nodes of the test it is connected to.
func (p *proc) nodePeers() int {
	p.t.Helper()
	peers, err := p.local.Peers(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	n := 0
	for _, q := range peers {
		if q.Role == "node" {
			n++
		}
	}
	return n
}

func sum(metrics map[string]float64, prefix string) (all float64) {
	for name, v := range metrics {
		if strings.HasPrefix(name, prefix) {
			all += v
		}
	}
	return all
}

// checkAttack compares what became of an attack with what should have.
func checkAttack(t *testing.T, procs []*proc, r attackReport) {
	t.Helper()
	for i, to := range r.Targets {
		switch {
		case to.Admitted != r.Admit:
			t.Errorf("%s: admitted: %v by %s: %q", r.Attack, to.Admitted, to.Peer, to.Refusal)
		case r.Admit && to.Sent == 0:
			t.Errorf("%s: nothing reached %s", r.Attack, to.Peer)
		case r.Offence && (!to.Cut || !strings.Contains(to.Again, "broke the rules")):
			t.Errorf("%s: cut off by %s: %v, and coming back it hears %q", r.Attack, to.Peer, to.Cut, to.Again)
		}
		word := "reason=" + r.Reason
		switch {
		case r.Reason == "" || r.Reason == "stale": // honest peers say stale things, too
			continue
		case r.Attack == "flood-registers" || r.Attack == "flood-claims":
			continue // on a slow machine they do not come faster than they may
		case !r.Admit: // the reason is a sentence there
			word = "not admitted"
		}
		within(t, 5*time.Second, r.Attack+" is told in the log", func() error { return told(procs[i].stderr.String(), r.Peer, word) })
	}
	for _, p := range procs {
		if r.Frozen == "" {
			continue
		}
		within(t, 2*time.Minute, "the instance of an owner that says two things at once is frozen", func() error {
			i, err := p.local.Instance(context.Background(), r.Frozen)
			if err == nil && (!i.Spec.Frozen || i.Spec.Restart != 0) {
				err = fmt.Errorf("%s: frozen %v, restart %d", p.key, i.Spec.Frozen, i.Spec.Restart)
			}
			return err
		})
	}
}

// told says whether a line of the log names the peer with the word.
func told(log, peer, word string) error {
	for line := range strings.Lines(log) {
		if strings.Contains(line, "peer="+peer) && strings.Contains(line, word) {
			return nil
		}
	}
	return fmt.Errorf("no line about %s with %s", peer, word)
}
