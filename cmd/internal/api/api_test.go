package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// fake is every backend of the handler.
type fake struct {
	t *testing.T
	*crdt.Replica
	bus     *bus
	logs    string
	here    bool
	fetched FetchRequest
	fetch   error
	word    string
	forgot  []stmt.Key
	named   [2]stmt.Key
}

func (f *fake) Status(*crdt.View, crdt.Spec) (string, string) { return f.word, "why" }
func (f *fake) Explain(*crdt.View, crdt.Spec) Explain {
	return Explain{Slots: []ExplainSlot{{Slot: 0}}}
}
func (f *fake) Wanted(*crdt.View, string) int     { return 2 }
func (f *fake) Self(Caller) Self                  { return Self{API: "unix:///x", DataDir: "/x", Warnings: []string{}} }
func (f *fake) Peers() []Peer                     { return []Peer{} }
func (f *fake) Doctor(context.Context) []Check    { return []Check{} }
func (f *fake) Capacity() Capacity                { return Capacity{} }
func (f *fake) Count() int                        { return 0 }
func (f *fake) Drain(context.Context, bool) error { return nil }
func (f *fake) Forget(_ context.Context, k stmt.Key) error {
	f.forgot = append(f.forgot, k)
	return nil
}
func (f *fake) NameOperator(_ context.Context, node, operator stmt.Key) error {
	f.named = [2]stmt.Key{node, operator}
	return nil
}
func (f *fake) List(context.Context) ([]Pack, error) {
	return []Pack{{CID: "bafyhere", Complete: true}}, nil
}
func (f *fake) Invite(context.Context, InviteRequest) (Invite, error) {
	return Invite{Ticket: "form1"}, nil
}
func (f *fake) NameBase(_ context.Context, r BaseRequest) (Base, error) {
	return Base{Name: r.Name}, nil
}

func (f *fake) Live(stmt.Key) string { return "alive" }

func (f *fake) Submit(ctx context.Context, raws ...[]byte) ([]stmt.ID, error) {
	ids, err := f.Replica.Submit(ctx, raws...)
	if errors.Is(err, stmt.ErrEncoding) || errors.Is(err, stmt.ErrShape) {
		return nil, Problemf(ExitNotAllowed, "%v", err)
	}
	return ids, err
}

func (f *fake) Logs(context.Context, string, LogOptions) (io.ReadCloser, error) {
	if !f.here {
		return nil, Problemf(ExitNotFound, "not here")
	}
	return io.NopCloser(strings.NewReader(f.logs)), nil
}

func (f *fake) Fetch(_ context.Context, _ stmt.Key, _ string, r FetchRequest, progress func(FetchProgress)) error {
	f.fetched = r
	progress(FetchProgress{Stage: "image", Bytes: 5, Total: 10})
	return f.fetch
}

var network = stmt.NewNetworkID("test", stmt.Key{})

func key(n byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32)) }

// serve starts a handler that sees every caller as c.
func serve(t *testing.T, c Caller) (*fake, *Client, string) {
	t.Helper()
	f := &fake{t: t, word: StatusPending, bus: &bus{subscribed: make(chan struct{})}}
	var err error
	f.Replica, err = crdt.Open(crdt.ReplicaConfig{Dir: t.TempDir(), Key: key(99), Network: network, Engine: crdt.NewModel(), Gossip: f.bus})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-f.bus.subscribed
	doc, err := os.ReadFile("../../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	h := NewHandler(Config{
		State: f, Signed: f, Placement: f, Packs: f, Host: f, Guests: f, Operator: f, Root: f, Version: "v", OpenAPI: doc, Now: time.Now,
		Mesh: func() Mesh { return Mesh{} },
	})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(WithCaller(r.Context(), c)))
	}))
	t.Cleanup(srv.Close)
	addr := srv.Listener.Addr().String()
	client := NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	})
	t.Cleanup(client.Close)
	return f, client, srv.URL
}

// create puts an instance of owner into the state.
func (f *fake) create(owner ed25519.PrivateKey) (*crdt.Author, string) {
	f.t.Helper()
	a, err := crdt.NewAuthor(owner, network, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	id, raws, err := a.Create(crdt.Spec{
		Name: "web", Pack: "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi", Replicas: 2, Phase: crdt.PhaseRunning,
		VCPU: 1, MemoryBytes: 512 << 20, DiskBytes: 5 << 30,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := f.Submit(context.Background(), raws...); err != nil {
		f.t.Fatal(err)
	}
	return a, id
}

// The document and the handler name the same endpoints.
func TestOpenAPIHasEveryRoute(t *testing.T) {
	b, err := os.ReadFile("../../../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var documented, served []string
	path := ""
	for line := range strings.Lines(string(b)) {
		if m := regexp.MustCompile(`^  (/v1/\S+):\s*$`).FindStringSubmatch(line); m != nil {
			path = m[1]
		}
		if m := regexp.MustCompile(`^    (get|post|put|delete):`).FindStringSubmatch(line); m != nil {
			documented = append(documented, strings.ToUpper(m[1])+" "+path)
		}
	}
	for _, r := range (&server{}).routes() {
		served = append(served, r.method+" "+r.path)
	}
	slices.Sort(documented)
	slices.Sort(served)
	if !slices.Equal(documented, served) {
		t.Errorf("documented %q\nserved     %q", documented, served)
	}
}

// Who may use what: every route, for every kind of caller.
func TestAccess(t *testing.T) {
	owner := stmt.KeyOf(key(1))
	callers := map[string]Caller{
		"web": {}, "socket": {Local: true}, "peer": {Peer: "12D3Koo"}, "session": {Peer: "12D3Koo", Owner: owner},
	}
	may := map[access][]string{
		public: {"web", "socket", "peer", "session"}, member: {"socket", "peer", "session"},
		local: {"socket"}, owner_: {"session"},
	}
	for name, c := range callers {
		_, _, url := serve(t, c)
		for _, r := range (&server{}).routes() {
			if r.path == "/v1/events" && slices.Contains(may[r.access], name) {
				continue // it would stream for ever
			}
			path := strings.NewReplacer("{id}", "none", "{cid}", "none", "{key}", "none").Replace(r.path)
			req, err := http.NewRequest(r.method, url+path, strings.NewReader("{"))
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if allowed := slices.Contains(may[r.access], name); allowed == (res.StatusCode == http.StatusForbidden) {
				t.Errorf("%s %s as %s: %s", r.method, r.path, name, res.Status)
			}
		}
	}
}

const owner_ = owner

func TestInstanceJSONIsTheContract(t *testing.T) {
	f, c, url := serve(t, Caller{})
	_, id := f.create(key(1))
	inst, err := c.Instance(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	if inst.Name != "web" || inst.Owner != stmt.KeyOf(key(1)) || inst.Status != StatusPending || inst.Reason != "why" || inst.Desired.Replicas != 2 {
		t.Errorf("%+v", inst)
	}
	res, err := http.Get(url + "/v1/instances")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var list []map[string]any
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	for _, k := range []string{"id", "name", "owner", "pack", "generation", "status", "reason", "desired", "replicas"} {
		if _, ok := list[0][k]; !ok {
			t.Errorf("no %q", k)
		}
	}
	if _, ok := list[0]["replicas"].([]any); !ok {
		t.Errorf("replicas is no array: %v", list[0]["replicas"])
	}
}

// A dead node's claim is shown as unhealthy until another node has the slot.
func TestReplicasOfDeadNodes(t *testing.T) {
	f, _, _ := serve(t, Caller{})
	_, id := f.create(key(1))
	s := &server{Config{State: f, Placement: deadly{f, stmt.KeyOf(key(11))}}}
	f.claim(key(11), crdt.Claim{Instance: id, Slot: 0, Generation: 1, Phase: crdt.ClaimRunning, Ready: true, StartedAt: 1700000000})
	spec, _ := f.View().Instance(id)
	got := s.replicas(f.View(), spec)
	if len(got) != 1 || got[0].Phase != "unhealthy" || got[0].Ready || got[0].StartedAt == nil || got[0].Address != nil {
		t.Errorf("alone: %+v", got)
	}
	f.claim(key(12), crdt.Claim{Instance: id, Slot: 0, Generation: 2, Phase: crdt.ClaimRunning, Ready: true})
	got = s.replicas(f.View(), spec)
	if len(got) != 1 || got[0].Node != stmt.KeyOf(key(12)) || !got[0].Ready {
		t.Errorf("taken over: %+v", got)
	}
}

type deadly struct {
	*fake
	key stmt.Key
}

func (d deadly) Live(k stmt.Key) string {
	if k == d.key {
		return "dead"
	}
	return "alive"
}

// claim gossips a claim as its node would, and waits until it has arrived.
func (f *fake) claim(node ed25519.PrivateKey, c crdt.Claim) {
	f.t.Helper()
	r, err := crdt.Open(crdt.ReplicaConfig{Dir: f.t.TempDir(), Key: node, Network: network, Engine: crdt.NewModel(), Gossip: f.bus})
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	c.Node, c.Owner = stmt.KeyOf(node), stmt.KeyOf(key(1))
	if err := r.SetClaims(context.Background(), []crdt.Claim{c}); err != nil {
		f.t.Fatal(err)
	}
	if len(f.View().ClaimsBy(c.Node)) != 1 {
		f.t.Fatal("the claim did not arrive")
	}
}

// bus is gossip without a network: whoever subscribed sees every message at once.
type bus struct {
	mu         sync.Mutex
	validators []func(ctx context.Context, from peer.ID, msg []byte) bool
	subscribed chan struct{}
}

func (b *bus) Publish(ctx context.Context, _ string, msg []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, v := range b.validators {
		v(ctx, peer.ID(stmt.KeyOf(key(98)).PeerID()), msg)
	}
	return nil
}

func (b *bus) Subscribe(_ context.Context, _ string, v func(ctx context.Context, from peer.ID, msg []byte) bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.validators = append(b.validators, v)
	close(b.subscribed)
	return nil
}

func TestProblems(t *testing.T) {
	ctx := context.Background()
	f, c, url := serve(t, Caller{Peer: "12D3Koo", Owner: stmt.KeyOf(key(2))})
	_, id := f.create(key(1))
	for name, tc := range map[string]struct {
		err  func() error
		exit int
	}{
		"unknown instance":  {func() error { _, err := c.Instance(ctx, "none"); return err }, ExitNotFound},
		"bad owner":         {func() error { _, err := c.OwnerStatements(ctx, stmt.Key{}); return err }, ExitNotFound},
		"no statement":      {func() error { _, err := c.Submit(ctx, nil); return err }, ExitUsage},
		"forged":            {func() error { _, err := c.Submit(ctx, [][]byte{{1}}); return err }, ExitNotAllowed},
		"large statement":   {func() error { _, err := c.Submit(ctx, [][]byte{make([]byte, stmt.MaxStatement+1)}); return err }, ExitUsage},
		"large body":        {func() error { _, err := c.Submit(ctx, [][]byte{make([]byte, MaxBody)}); return err }, ExitUsage},
		"another's logs":    {func() error { return c.Logs(ctx, id, LogOptions{}, nil) }, ExitNotAllowed},
		"another's events":  {func() error { return c.Events(ctx, id, nil) }, ExitNotAllowed},
		"invite":            {func() error { _, err := c.Invite(ctx, InviteRequest{}); return err }, ExitNotAllowed},
		"pin":               {func() error { return c.FetchPack(ctx, "x", FetchRequest{Pin: true}, nil) }, ExitNotAllowed},
		"holders of no CID": {func() error { _, err := c.Holders(ctx, "notacid"); return err }, ExitUsage},
		"pack":              {func() error { _, err := c.Pack(ctx, "none"); return err }, ExitNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.err()
			var p *Problem
			if !errors.As(err, &p) || p.Exit != tc.exit || p.Detail == "" {
				t.Errorf("got %#v, want a problem with exit %d", err, tc.exit)
			}
		})
	}
	res, err := http.Post(url+"/v1/statements", "application/json", bytes.NewReader(make([]byte, MaxBody+1)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("content type %q", res.Header.Get("Content-Type"))
	}
	for _, body := range []string{`{"statements":[],"x":1}`, `{"statements":["AA=="]} {}`, `{"statements":1}`} {
		res, err := http.Post(url+"/v1/statements", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %s", body, res.Status)
		}
	}
}

func TestClientSaysWhenNobodyAnswers(t *testing.T) {
	c := NewClient(Unix("unix://" + t.TempDir() + "/none.sock"))
	if _, err := c.Health(context.Background()); ExitOf(err) != ExitUnreachable {
		t.Errorf("no socket: %v", err)
	}
	hang := NewClient(func(ctx context.Context) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := hang.Health(ctx); ExitOf(err) != ExitTimeout {
		t.Errorf("hangs: %v", err)
	}
}

func TestFetchStreamsProgress(t *testing.T) {
	f, c, _ := serve(t, Caller{Peer: "12D3KooPeer", Owner: stmt.KeyOf(key(1))})
	var seen []FetchProgress
	if err := c.FetchPack(context.Background(), "bafy", FetchRequest{From: []string{"other"}}, func(p FetchProgress) { seen = append(seen, p) }); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || seen[0].Bytes != 5 || !seen[1].Done || seen[1].Total != 10 {
		t.Errorf("%+v", seen)
	}
	if !slices.Equal(f.fetched.From, []string{"12D3KooPeer", "other"}) {
		t.Errorf("asked %q: the caller comes first", f.fetched.From)
	}
	f.fetch = Problemf(ExitUnreachable, "gone").WithHint("look")
	var p *Problem
	if err := c.FetchPack(context.Background(), "bafy", FetchRequest{}, nil); !errors.As(err, &p) || p.Exit != ExitUnreachable || p.Hint != "look" {
		t.Errorf("a failure inside the stream: %#v", err)
	}
}

func TestLogs(t *testing.T) {
	f, c, _ := serve(t, Caller{Peer: "p", Owner: stmt.KeyOf(key(1))})
	_, id := f.create(key(1))
	f.here, f.logs = true, "one\ntwo\n"+strings.Repeat("x", maxLogLine+10)+"\nlast without newline"
	var got []string
	err := c.Logs(context.Background(), id, LogOptions{Slot: 1}, func(l LogLine) error {
		if l.Slot != 1 {
			return fmt.Errorf("slot %d", l.Slot)
		}
		got = append(got, l.Text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(got[:2], "|") != "one|two" || strings.Join(got[2:4], "") != strings.Repeat("x", maxLogLine+10) || got[4] != "last without newline" {
		t.Errorf("%d lines: %.60q", len(got), got)
	}
	f.here = false
	f.claim(key(12), crdt.Claim{Instance: id, Slot: 1, Generation: 1, Phase: crdt.ClaimRunning})
	var p *Problem
	if err := c.Logs(context.Background(), id, LogOptions{Slot: 1}, nil); !errors.As(err, &p) || p.Status != http.StatusMisdirectedRequest ||
		!slices.Equal(p.Nodes, []string{stmt.KeyOf(key(12)).String()}) {
		t.Errorf("elsewhere: %#v", err)
	}
}

func TestEvents(t *testing.T) {
	f, c, _ := serve(t, Caller{Peer: "p", Owner: stmt.KeyOf(key(1))})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f.create(key(2)) // another owner's: no event
	a, id := f.create(key(1))
	raws, err := a.Delete(id)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.do(ctx, http.MethodGet, "/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	// The answer has begun, so the handler knows what was there before.
	f.claim(key(12), crdt.Claim{Instance: id, Slot: 1, Generation: 1, Phase: crdt.ClaimRunning})
	var kinds []string
	err = readEvents(res.Body, func(_ string, data []byte) error {
		var e Event
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		kinds = append(kinds, e.Kind)
		if e.Kind == "replica.phase" {
			_, err := f.Submit(ctx, raws...)
			return err
		}
		if e.Kind == "instance.deleted" {
			return io.EOF
		}
		return nil
	})
	if !errors.Is(err, io.EOF) || !slices.Contains(kinds, "replica.phase") {
		t.Errorf("%q, %v", kinds, err)
	}
}

func TestHeaders(t *testing.T) {
	var b bytes.Buffer
	want := ProxyRequest{Instance: "i", Slot: 2, Port: 80}
	if err := WriteHeader(&b, want); err != nil {
		t.Fatal(err)
	}
	b.WriteString("raw bytes")
	var got ProxyRequest
	if err := ReadHeader(&b, &got); err != nil || got != want || b.String() != "raw bytes" {
		t.Errorf("%+v, %v, rest %q", got, err, b.String())
	}
	for name, in := range map[string]string{
		"cut": `{"port":1`, "unknown key": "{\"x\":1}\n", "no json": "GET / HTTP/1.1\n", "endless": strings.Repeat("x", MaxHeader+1),
	} {
		if err := ReadHeader(strings.NewReader(in), &got); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := WriteHeader(io.Discard, strings.Repeat("x", MaxHeader)); err == nil {
		t.Error("a header over the limit is written")
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add("data: {}\n\n:\n\nevent: problem\ndata: {\"exit\":1}\n\n")
	f.Add("data: a\ndata: b\n\ndata")
	f.Fuzz(func(t *testing.T, in string) {
		_ = readEvents(strings.NewReader(in), func(string, []byte) error { return nil })
	})
}

// A wrong method is told from a wrong path, and says what is right.
func TestWrongMethod(t *testing.T) {
	_, _, url := serve(t, Caller{Local: true})
	for _, tc := range []struct{ method, path, allow string }{
		{"DELETE", "/v1/instances", "GET, HEAD"}, {"POST", "/v1/instances/none/logs", "GET, HEAD"},
		{"GET", "/v1/statements", "POST"}, {"PUT", "/v1/bases", "GET, POST, HEAD"}, {"GET", "/v1/none", ""},
	} {
		req, err := http.NewRequest(tc.method, url+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var p Problem
		err = json.NewDecoder(res.Body).Decode(&p)
		res.Body.Close()
		want := http.StatusMethodNotAllowed
		if tc.allow == "" {
			want = http.StatusNotFound
		}
		if err != nil || res.StatusCode != want || p.Status != want || p.Exit == 0 || res.Header.Get("Allow") != tc.allow {
			t.Errorf("%s %s: %s, Allow %q, %+v, %v", tc.method, tc.path, res.Status, res.Header.Get("Allow"), p, err)
		}
	}
}

// Whatever a client sends first on a stream, reading it is bounded, ends, and
// takes nothing of what follows.
func FuzzReadHeader(f *testing.F) {
	for _, seed := range []string{"", "{}\n", `{"instance":"a","slot":1,"port":80}` + "\nrest", `{"port":-1}` + "\n", `{"no":1}` + "\n", "[[[[\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var req ProxyRequest
		err := ReadHeader(r, &req)
		if taken := len(b) - r.Len(); taken > MaxHeader {
			t.Fatalf("%d bytes are taken", taken)
		} else if end := bytes.IndexByte(b, '\n'); err == nil && taken != end+1 {
			t.Fatalf("%d bytes are taken of a line of %d", taken, end+1)
		}
	})
}

// FuzzBody: a body is refused as its sender's mistake, or is within bounds.
func FuzzBody(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"statements":["AAAA"]}`, `{"statements":null}{}`, `{"no":1}`, `{"statements":[[[[`, `{"seconds":-1,"roles":["king"]}`, `{"from":["x"],"pin":true}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func() *http.Request {
			r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(b))
			r.Body = http.MaxBytesReader(nil, r.Body, MaxBody)
			return r
		}
		s, err := decode[SubmitRequest](read())
		_, ierr := decode[InviteRequest](read())
		_, ferr := decode[FetchRequest](read())
		for _, err := range []error{err, ierr, ferr} {
			if err != nil && ExitOf(err) != ExitUsage {
				t.Fatalf("not the sender's mistake: %v", err)
			}
		}
		size := 0
		for _, raw := range s.Statements {
			size += len(raw)
		}
		if err == nil && size > len(b) {
			t.Fatalf("%d bytes of statements in %d", size, len(b))
		}
	})
}
