package api

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

func (s *server) node(w http.ResponseWriter, r *http.Request) error {
	c := CallerOf(r.Context())
	self := s.Host.Self(c)
	if n, ok := s.State.View().Node(self.Node.Key); ok {
		self.Node = s.wireNode(s.State.View(), n, self.Node.Key)
	}
	if !c.Local {
		self.API, self.DataDir = "", ""
	}
	return reply(w, self)
}

func (s *server) nodes(w http.ResponseWriter, r *http.Request) error {
	v, self := s.State.View(), s.Host.Self(CallerOf(r.Context())).Node.Key
	out := []Node{}
	for _, n := range v.Nodes() {
		out = append(out, s.wireNode(v, n, self))
	}
	return reply(w, out)
}

func (s *server) wireNode(v *crdt.View, n crdt.Node, self stmt.Key) Node {
	out := Node{
		Key: n.Key, Addrs: n.Addrs, CPUs: n.Total.CPUs, Memory: n.Total.Memory, Disk: n.Total.Disk,
		Labels: n.Labels, Region: n.Region, Version: n.Version, Accel: n.Accel, Draining: n.Draining,
		Restarts: n.Restarts, Live: s.Placement.Live(n.Key), Self: n.Key == self,
		Instances: len(v.ClaimsBy(n.Key)), Holds: n.Holds, Operator: n.Operator, Operators: []stmt.Key{}, Equivocations: []Equivocation{},
	}
	if keys, err := stmt.OperatorsOf(n.Operators, v.Network(), n.Key); err == nil {
		out.Operators, out.Operated = keys, n.Operators
	}
	for _, e := range s.Signed.Equivocations() {
		if e.Author == n.Key && e.Kind != stmt.KindSpec {
			out.Equivocations = append(out.Equivocations, Equivocation{Kind: string(e.Kind), Epoch: e.Epoch, Seq: e.Seq, FoundAt: e.FoundAt.UTC()})
		}
	}
	if out.Self {
		out.Live = "alive"
	}
	if out.Addrs == nil {
		out.Addrs = []string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	if out.Holds == nil {
		out.Holds = []string{}
	}
	return out
}

func (s *server) peers(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, s.Host.Peers())
}

func (s *server) doctor(w http.ResponseWriter, r *http.Request) error {
	return reply(w, s.Host.Doctor(r.Context()))
}

func (s *server) status(w http.ResponseWriter, r *http.Request) error {
	v, self := s.State.View(), s.Host.Self(CallerOf(r.Context()))
	out := Status{
		Version: s.Version, Network: self.Network, Self: self.Node.Key, Peers: len(s.Host.Peers()),
		Instances: map[string]int{StatusPending: 0, StatusSuccess: 0, StatusFailure: 0},
		Replicas:  map[string]int{}, Local: s.Guests.Count(), Capacity: s.Host.Capacity(),
	}
	for _, n := range v.Nodes() {
		out.Nodes++
		if n.Key == self.Node.Key || s.Placement.Live(n.Key) == "alive" {
			out.NodesAlive++
		}
	}
	for _, spec := range v.Instances() {
		word, _ := s.Placement.Status(v, spec)
		out.Instances[word]++
		for _, rep := range s.replicas(v, spec) {
			out.Replicas[rep.Phase]++
		}
	}
	return reply(w, out)
}

func (s *server) instances(w http.ResponseWriter, r *http.Request) error {
	v := s.State.View()
	specs := v.Instances()
	if q := r.URL.Query().Get("owner"); q != "" {
		k, err := stmt.ParseKey(q)
		if err != nil {
			return Problemf(ExitUsage, "owner: %v", err)
		}
		specs = v.InstancesOf(k)
	}
	out := []Instance{}
	for _, spec := range specs {
		out = append(out, s.wireInstance(v, spec))
	}
	return reply(w, out)
}

// find is the instance a request names.
func (s *server) find(v *crdt.View, r *http.Request) (crdt.Spec, error) {
	id := r.PathValue("id")
	spec, ok := v.Instance(id)
	if !ok {
		return spec, Problemf(ExitNotFound, "no instance %s", id)
	}
	return spec, nil
}

func (s *server) instance(w http.ResponseWriter, r *http.Request) error {
	v := s.State.View()
	spec, err := s.find(v, r)
	if err != nil {
		return err
	}
	out := s.wireInstance(v, spec)
	for _, o := range s.Signed.Omitted(spec.ID) {
		w := Omitted{ID: o.ID.String(), Author: o.Author, Epoch: o.Epoch, SignedAt: time.Unix(o.SignedAt, 0).UTC(), FoundAt: o.FoundAt.UTC(), Keys: []string{}}
		for _, op := range o.Ops {
			w.Keys = append(w.Keys, op.Key)
		}
		out.Omitted = append(out.Omitted, w)
	}
	return reply(w, out)
}

func (s *server) explain(w http.ResponseWriter, r *http.Request) error {
	v := s.State.View()
	spec, err := s.find(v, r)
	if err != nil {
		return err
	}
	out := s.Placement.Explain(v, spec)
	out.ID, out.Name = spec.ID, spec.Name
	out.Status, out.Reason = s.Placement.Status(v, spec)
	all := s.replicas(v, spec)
	for i := range out.Slots {
		out.Slots[i].Claims = []Replica{}
		for _, rep := range all {
			if rep.Slot == out.Slots[i].Slot {
				out.Slots[i].Claims = append(out.Slots[i].Claims, rep)
			}
		}
	}
	return reply(w, out)
}

func (s *server) wireInstance(v *crdt.View, spec crdt.Spec) Instance {
	word, reason := s.Placement.Status(v, spec)
	return Instance{
		ID: spec.ID, Name: spec.Name, Owner: spec.Owner, Pack: spec.Pack, Generation: spec.Generation,
		Status: word, Reason: reason,
		Desired:  Desired{Replicas: spec.Replicas, Phase: string(spec.Phase)},
		Replicas: s.replicas(v, spec),
		Public:   append([]PublicURL{}, s.Public(v, spec.ID)...),
		Spec: Spec{
			Restart: spec.Restart, VCPU: spec.VCPU, MemoryBytes: spec.MemoryBytes, DiskBytes: spec.DiskBytes,
			Env: spec.Env, SSHKeys: spec.SSHKeys, Expose: spec.Expose, Labels: spec.Labels, Region: spec.Region,
			Operators: spec.Operators, Partition: spec.Partition, Voters: spec.Voters, GPU: spec.GPU, Delegates: spec.Delegates,
			Frozen: spec.Frozen,
		},
	}
}

// replicas are the claims a user wants to see: a dead node's claim is left out
// as soon as another node runs the slot, and else shown as unhealthy, because a
// dead node cannot take back what it said.
func (s *server) replicas(v *crdt.View, spec crdt.Spec) []Replica {
	claims := v.Claims(spec.ID)
	held := map[int]bool{}
	for _, c := range claims {
		if s.Placement.Live(c.Node) != "dead" {
			held[c.Slot] = true
		}
	}
	out := []Replica{}
	for _, c := range claims {
		live := s.Placement.Live(c.Node)
		if live == "dead" && held[c.Slot] {
			continue
		}
		rep := Replica{
			Node: c.Node, Slot: c.Slot, Phase: string(c.Phase), Ready: c.Ready, Reason: c.Reason, Pack: c.Pack,
			Address: text(c.Address), Address6: text(c.Address6), MeshKey: text(c.MeshKey),
			SSHHostKey: text(c.SSHHostKey), Endpoint: text(c.Endpoint), Accel: text(c.Accel),
			StartedAt: unix(c.StartedAt), ReadyAt: unix(c.ReadyAt), Live: live,
		}
		if live == "dead" {
			rep.Phase, rep.Ready, rep.Reason = "unhealthy", false, "its node does not answer"
		}
		out = append(out, rep)
	}
	slices.SortFunc(out, func(a, b Replica) int {
		return cmp.Or(cmp.Compare(a.Slot, b.Slot), a.Node.Compare(b.Node))
	})
	return out
}

// text is nil for what is not known.
func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// unix is nil for what has not happened.
func unix(sec int64) *time.Time {
	if sec == 0 {
		return nil
	}
	t := time.Unix(sec, 0).UTC()
	return &t
}

func (s *server) ownerStatements(w http.ResponseWriter, r *http.Request) error {
	return statementsOf(w, r, s.Signed.OwnerStatements)
}

func (s *server) meshStatements(w http.ResponseWriter, r *http.Request) error {
	return statementsOf(w, r, s.Signed.DeviceStatements)
}

// statementsOf writes raw statements that have to do with the owner of the path.
func statementsOf(w http.ResponseWriter, r *http.Request, of func(stmt.Key) [][]byte) error {
	k, err := stmt.ParseKey(r.PathValue("key"))
	if err != nil {
		return Problemf(ExitUsage, "%v", err)
	}
	out := Statements{Owner: k, Statements: of(k)}
	if out.Statements == nil {
		out.Statements = [][]byte{}
	}
	return reply(w, out)
}

func (s *server) claimStatements(w http.ResponseWriter, r *http.Request) error {
	spec, err := s.find(s.State.View(), r)
	if err != nil {
		return err
	}
	out := Statements{Owner: spec.Owner, Statements: s.Signed.ClaimStatements(spec.ID)}
	if out.Statements == nil {
		out.Statements = [][]byte{}
	}
	return reply(w, out)
}

func (s *server) secrets(w http.ResponseWriter, r *http.Request) error {
	v := s.State.View()
	spec, err := s.find(v, r)
	if err != nil {
		return err
	}
	if CallerOf(r.Context()).Owner != spec.Owner {
		return Problemf(ExitNotAllowed, "instance %s is another owner's", spec.ID)
	}
	return reply(w, SecretsOf(v, spec.ID))
}

// SecretsOf is what may be told of an instance's secrets, by name.
func SecretsOf(v *crdt.View, instance string) []Secret {
	out := []Secret{}
	for _, c := range v.Secrets(instance) {
		out = append(out, Secret{Name: c.Name, SetAt: time.Unix(c.SetAt, 0).UTC(), Env: c.Env, Nodes: append([]stmt.Key{}, c.To...)})
	}
	return out
}
