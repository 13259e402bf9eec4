package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// somePack is a CID that nobody holds.
const somePack = "bafyreigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

// daemon is a formd with the real API and state, and no machines: what it says
// of them is its fields.
type daemon struct {
	*crdt.Replica
	word, reason string
	status       func(*crdt.View, crdt.Spec) (word, reason string) // instead of these
	wanted       int
	onWanted     func()   // called first
	root         stmt.Key // it says the network has
	ip           string   // where it listens; "": loopback
	addrs        []string // of its libp2p node, if it has one
	mesh         api.Mesh // what it says of it
	public       map[string][]api.PublicURL
	handler      http.Handler
	invite       func(api.InviteRequest) (api.Invite, error)
	forgot       []stmt.Key // nodes
	onForget     func(stmt.Key) error
	named        [][2]stmt.Key                           // nodes and their operators
	onSubmit     func(raws ...[]byte) ([]stmt.ID, error) // instead of the state's
	explained    api.Explain
	onDrain      func(ctx context.Context, on bool) error
}

// Public is what the daemon says of ingress nodes.
func (d *daemon) Public(_ *crdt.View, id string) []api.PublicURL { return d.public[id] }

// at is the IPv4 address at which it listens.
func (d *daemon) at() string {
	if d.ip == "" {
		return "127.0.0.1"
	}
	return d.ip
}

func (d *daemon) Live(stmt.Key) string                     { return "alive" }
func (d *daemon) List(context.Context) ([]api.Pack, error) { return nil, nil }
func (d *daemon) Mesh() api.Mesh                           { return d.mesh }
func (d *daemon) Peers() []api.Peer                        { return []api.Peer{} }
func (d *daemon) Doctor(context.Context) []api.Check       { return []api.Check{} }
func (d *daemon) Capacity() api.Capacity                   { return api.Capacity{} }
func (d *daemon) Count() int                               { return 0 }

func (d *daemon) Drain(ctx context.Context, on bool) error {
	if d.onDrain != nil {
		return d.onDrain(ctx, on)
	}
	return nil
}

func (d *daemon) Explain(*crdt.View, crdt.Spec) api.Explain { return d.explained }

func (d *daemon) Forget(_ context.Context, k stmt.Key) error {
	if d.onForget != nil {
		return d.onForget(k)
	}
	d.forgot = append(d.forgot, k)
	return nil
}

func (d *daemon) NameOperator(_ context.Context, node, operator stmt.Key) error {
	d.named = append(d.named, [2]stmt.Key{node, operator})
	return nil
}

func (d *daemon) Submit(ctx context.Context, raws ...[]byte) ([]stmt.ID, error) {
	if d.onSubmit != nil {
		return d.onSubmit(raws...)
	}
	return d.Replica.Submit(ctx, raws...)
}

func (d *daemon) Status(v *crdt.View, s crdt.Spec) (word, reason string) {
	if d.status != nil {
		return d.status(v, s)
	}
	return d.word, d.reason
}

func (d *daemon) Wanted(*crdt.View, string) int {
	if d.onWanted != nil {
		d.onWanted()
	}
	return d.wanted
}

func (d *daemon) Fetch(context.Context, stmt.Key, string, api.FetchRequest, func(api.FetchProgress)) error {
	return nil // it has every pack already
}

func (d *daemon) Logs(context.Context, string, api.LogOptions) (io.ReadCloser, error) {
	return nil, errors.New("not here")
}

func (d *daemon) NameBase(context.Context, api.BaseRequest) (api.Base, error) {
	return api.Base{}, errors.New("not here")
}

func (d *daemon) Invite(_ context.Context, r api.InviteRequest) (api.Invite, error) {
	return d.invite(r)
}

// testSettings are not the usual ones, so that nothing here works by those.
var (
	testSettings = stmt.Settings{Prefix4: netip.MustParsePrefix("100.64.0.0/10"), Zone: "fog.example.org"}
	testNet      = testSettings.NetworkID("test", stmt.Key{})
)

func (d *daemon) Self(api.Caller) api.Self {
	return api.Self{
		Node:    api.Node{Key: stmt.KeyOf(testKey(9)), Addrs: append([]string{}, d.addrs...), Labels: map[string]string{}, Holds: []string{}, Operators: []stmt.Key{}},
		Network: api.Network{Name: "test", ID: testNet.String(), Root: d.root, Open: true, Prefix4: testSettings.Prefix4.String(), Zone: testSettings.Zone}, Warnings: []string{},
	}
}

func testKey(n byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, 32)) }

// home is a user's machine with a key and a daemon: form runs there.
type home struct {
	t      *testing.T
	dir    string
	owner  ed25519.PrivateKey
	daemon *daemon
}

func newHome(t *testing.T) *home {
	t.Helper()
	dir, err := os.MkdirTemp("", "form-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &home{t: t, dir: dir, owner: testKey(1), daemon: &daemon{word: api.StatusPending}}
	h.daemon.Replica, err = crdt.Open(crdt.ReplicaConfig{Dir: filepath.Join(dir, "state"), Key: testKey(9), Network: testNet, Engine: crdt.NewModel()})
	if err != nil {
		t.Fatal(err)
	}
	d := h.daemon
	handler := api.NewHandler(api.Config{State: d, Signed: d, Placement: d, Packs: d, Host: d, Guests: d, Operator: d, Root: d, Mesh: d.Mesh, Public: d.Public, Now: time.Now})
	d.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r.WithContext(api.WithCaller(r.Context(), api.Caller{Local: true})))
	})
	l, err := net.Listen("unix", h.socket())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: d.handler}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-ended
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	key := filepath.Join(dir, "owner.key")
	if err := keystore.Save(key, h.owner, nil); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"HOME": dir, "XDG_CONFIG_HOME": "", "XDG_DATA_HOME": "", "XDG_CACHE_HOME": "", "FORM_CONFIG": "", "FORM_PEER": "", "FORM_TICKET": "",
		"FORM_KEY_FILE": key, "FORM_API": "unix://" + h.socket(), "FORM_PASSWORD": "", "PASSWORD": "", "FORM_PASSWORD_FILE": "",
	} {
		t.Setenv(k, v)
	}
	return h
}

func (h *home) socket() string { return filepath.Join(h.dir, "s") }

// form runs one command line.
func (h *home) form(args ...string) (code int, stdout, stderr string) { return h.given("", args...) }

// given runs one command line with this on standard input.
func (h *home) given(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, talk bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &talk)
	return code, out.String(), talk.String()
}

// ships puts an instance of the owner into the state.
func (h *home) ships(spec crdt.Spec) string {
	h.t.Helper()
	a, err := crdt.NewAuthor(h.owner, testNet, h.daemon.OwnerStatements(stmt.KeyOf(h.owner)))
	if err != nil {
		h.t.Fatal(err)
	}
	spec.Pack = somePack
	id, raws, err := a.Create(spec)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.daemon.Submit(context.Background(), raws...); err != nil {
		h.t.Fatal(err)
	}
	return id
}

func (h *home) spec(id string) crdt.Spec {
	h.t.Helper()
	s, ok := h.daemon.View().Instance(id)
	if !ok {
		h.t.Fatalf("no instance %s", id)
	}
	return s
}

// app is form between a command line and a verb, its connection and its talk.
func (h *home) app() (*app, *swarm.Conn, *bytes.Buffer) {
	h.t.Helper()
	var talk bytes.Buffer
	a := &app{p: cli.NewPrinter(io.Discard, &talk), stdin: strings.NewReader(""), stdout: io.Discard, stderr: &talk, getenv: os.Getenv, running: true}
	c, err := a.connect(context.Background(), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { closing(c, &err) })
	return a, c, &talk
}
