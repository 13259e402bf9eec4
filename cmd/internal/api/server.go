package api

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// State is the swarm's state on this node; *crdt.Replica has these methods.
type State interface {
	View() *crdt.View
	Watch(ctx context.Context) <-chan *crdt.View
	Submit(ctx context.Context, raws ...[]byte) ([]stmt.ID, error)
}

// Signed gives raw statements, for those who take nobody's word for what they
// say; *crdt.Replica has these methods.
type Signed interface {
	OwnerStatements(owner stmt.Key) [][]byte
	ClaimStatements(instance string) [][]byte
	DeviceStatements(owner stmt.Key) [][]byte
	// Omitted are the changes that a later epoch of an instance began without.
	Omitted(instance string) []crdt.Omission
	// Equivocations are the authors found to have signed two contents for one thing.
	Equivocations() []crdt.Equivocation
}

// Placement judges instances: pure functions of the view and this node's own
// probes.
type Placement interface {
	// Status is PENDING, SUCCESS or FAILURE with the reason.
	Status(v *crdt.View, s crdt.Spec) (word, reason string)
	// Explain fills everything but ID, Name, Status and Reason.
	Explain(v *crdt.View, s crdt.Spec) Explain
	// Live is alive, suspect, dead or unknown.
	Live(node stmt.Key) string
	// Wanted is how many nodes should hold a pack for the live specs.
	Wanted(v *crdt.View, cid string) int
}

// Packs is the node's content store.
type Packs interface {
	List(ctx context.Context) ([]Pack, error)
	// Fetch returns when the pack is complete here. The owner is zero for the
	// unix socket.
	Fetch(ctx context.Context, owner stmt.Key, cid string, r FetchRequest, progress func(FetchProgress)) error
}

// Host is the answering node itself.
type Host interface {
	Self(c Caller) Self
	Peers() []Peer
	Doctor(ctx context.Context) []Check
	Capacity() Capacity
}

// Guests reaches the VMs of this node.
type Guests interface {
	// Logs returns the entrypoint's output; the caller closes it. A replica that
	// is not here is a Problem with ExitNotFound.
	Logs(ctx context.Context, instance string, o LogOptions) (io.ReadCloser, error)
	// Count is the number of VMs.
	Count() int
}

// Operator acts for whoever runs the node.
type Operator interface {
	Invite(ctx context.Context, r InviteRequest) (Invite, error)
	NameBase(ctx context.Context, r BaseRequest) (Base, error)
	Drain(ctx context.Context, draining bool) error
}

// Root says what is the network's root's to say of nodes.
type Root interface {
	// Forget takes a node out of the network for good.
	Forget(ctx context.Context, node stmt.Key) error
	// NameOperator says whom a node belongs to; zero: nobody.
	NameOperator(ctx context.Context, node, operator stmt.Key) error
}

// Config is what the handler serves. All fields but Metrics, Pprof, Refused and
// Logger are required.
type Config struct {
	State     State
	Signed    Signed
	Placement Placement
	Packs     Packs
	Host      Host
	Guests    Guests
	Operator  Operator
	Root      Root
	Mesh      func() Mesh // the node's part in it
	// Public are the URLs by which everybody reaches an instance; nil: there are none.
	Public  func(v *crdt.View, id string) []PublicURL
	Version string
	// Publishers are the keys whose base names this node trusts.
	Publishers []stmt.Key
	OpenAPI    []byte       // the document of /v1/openapi.yaml
	Metrics    http.Handler // GET /metrics
	Pprof      http.Handler // /debug/pprof/, unix socket only
	Now        func() time.Time
	// Refused is told why a request got a Problem; ctx is the request's.
	Refused func(ctx context.Context, err error)
	Logger  *slog.Logger
}

type server struct{ Config }

// NewHandler returns the API. It trusts CallerOf(ctx) and nothing else about
// who calls. The returned handler is safe for concurrent use.
func NewHandler(c Config) http.Handler {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Public == nil {
		c.Public = func(*crdt.View, string) []PublicURL { return nil }
	}
	if c.Refused == nil {
		c.Refused = func(context.Context, error) {}
	}
	s := &server{c}
	mux := http.NewServeMux()
	allow := map[string][]string{}
	for _, r := range s.routes() {
		mux.HandleFunc(r.method+" "+r.path, s.wrap(r))
		allow[r.path] = append(allow[r.path], r.method)
	}
	if c.Metrics != nil {
		mux.Handle("GET /metrics", c.Metrics)
		allow["/metrics"] = []string{"GET"}
	}
	for path, methods := range allow { // any order: one pattern each
		mux.HandleFunc(path, notAllowed(methods))
	}
	if c.Pprof != nil {
		mux.HandleFunc("/debug/pprof/", func(w http.ResponseWriter, r *http.Request) {
			if err := local.check(CallerOf(r.Context())); err != nil {
				c.Refused(r.Context(), err)
				WriteProblem(w, err)
				return
			}
			c.Pprof.ServeHTTP(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		WriteProblem(w, Problemf(ExitNotFound, "%s %s: no such endpoint; see /v1/openapi.yaml", r.Method, r.URL.Path))
	})
	return mux
}

// notAllowed answers requests by a method that a path does not take.
func notAllowed(methods []string) http.HandlerFunc {
	list := strings.Join(methods, ", ")
	if slices.Contains(methods, "GET") {
		list += ", HEAD" // as http.ServeMux has it
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", list)
		WriteProblem(w, MethodProblem("%s %s: this endpoint takes %s", r.Method, r.URL.Path, list))
	}
}

// route is one endpoint. serve either writes the answer itself and returns nil,
// or returns an error before it wrote anything.
type route struct {
	method, path string
	access       access
	serve        func(w http.ResponseWriter, r *http.Request) error
}

func (s *server) routes() []route {
	return []route{
		{"GET", "/v1/openapi.yaml", public, s.openapi},
		{"GET", "/v1/health", public, s.health},
		{"GET", "/v1/status", public, s.status},
		{"GET", "/v1/node", public, s.node},
		{"POST", "/v1/node/drain", local, s.drain},
		{"GET", "/v1/nodes", public, s.nodes},
		{"POST", "/v1/nodes/{key}/forget", local, s.forget},
		{"POST", "/v1/nodes/{key}/operator", local, s.nameOperator},
		{"GET", "/v1/peers", member, s.peers},
		{"GET", "/v1/mesh", member, s.mesh},
		{"GET", "/v1/doctor", member, s.doctor},
		{"GET", "/v1/instances", public, s.instances},
		{"GET", "/v1/instances/{id}", public, s.instance},
		{"GET", "/v1/instances/{id}/explain", public, s.explain},
		{"GET", "/v1/instances/{id}/claims", public, s.claimStatements},
		{"GET", "/v1/instances/{id}/secrets", owner, s.secrets},
		{"GET", "/v1/instances/{id}/logs", owner, s.logs},
		{"GET", "/v1/events", owner, s.events},
		{"GET", "/v1/owners/{key}/statements", public, s.ownerStatements},
		{"GET", "/v1/owners/{key}/mesh", public, s.meshStatements},
		{"POST", "/v1/statements", member, s.submit},
		{"GET", "/v1/packs", public, s.packs},
		{"GET", "/v1/packs/{cid}", public, s.pack},
		{"GET", "/v1/packs/{cid}/holders", public, s.holders},
		{"POST", "/v1/packs/{cid}/fetch", member, s.fetch},
		{"GET", "/v1/bases", public, s.bases},
		{"POST", "/v1/bases", local, s.nameBase},
		{"POST", "/v1/invites", local, s.invite},
	}
}

func (s *server) wrap(r route) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if err := r.access.check(CallerOf(req.Context())); err != nil {
			s.Refused(req.Context(), err)
			WriteProblem(w, err)
			return
		}
		req.Body = http.MaxBytesReader(w, req.Body, MaxBody)
		if err := r.serve(w, req); err != nil {
			s.Logger.Debug("api request failed", "method", r.method, "path", req.URL.Path, "err", err)
			s.Refused(req.Context(), err)
			WriteProblem(w, err)
		}
	}
}

// reply writes v as JSON.
func reply(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	// The peer may be gone; there is nobody left to tell.
	_, _ = w.Write(append(b, '\n'))
	return nil
}

// decode reads a JSON body of at most MaxBody bytes; unknown keys are refused.
func decode[T any](r *http.Request) (T, error) {
	var v T
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		if p := asProblem(err); p.Status == http.StatusRequestEntityTooLarge || p.Status == http.StatusRequestTimeout {
			return v, p
		}
		return v, Problemf(ExitUsage, "the body is not what this endpoint takes: %v", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return v, Problemf(ExitUsage, "there are bytes after the JSON body")
	}
	return v, nil
}

func (s *server) openapi(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write(s.OpenAPI)
	return nil
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, Health{OK: true, Version: s.Version})
}
