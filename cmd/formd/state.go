package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/cmd/internal/tree"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/automerge"
	"github.com/formthefog/formation/crdt/stmt"
)

func newStateCommand(stdout io.Writer) *cobra.Command {
	cmd := &cobra.Command{
		Use: "state", Short: "Look at the state a stopped node has on disk",
		Long: `Look at the state in a data directory while no formd runs on it. Nothing is changed.`,
	}
	data := config.Default(config.HostEnv()).Data
	cmd.PersistentFlags().StringVar(&data, "data", data, "data directory of the node")
	cmd.AddCommand(newVerifyCommand(stdout, &data), newDumpCommand(stdout, &data))
	return tree.Group(cmd)
}

func newVerifyCommand(stdout io.Writer, data *string) *cobra.Command {
	asJSON := false
	cmd := &cobra.Command{
		Use: "verify", Short: "Check every statement of the state log",
		Long: `Reads the state log frame by frame, checks checksums, canonical form, network and
signature of every statement, replays it, and says what it found. Exits 1 when the
log is damaged or holds what does not verify.`,
		Args: func(_ *cobra.Command, args []string) error { return usage(noArgs(args)) },
		RunE: func(*cobra.Command, []string) error { return verifyState(*data, asJSON, stdout) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return cmd
}

func newDumpCommand(stdout io.Writer, data *string) *cobra.Command {
	var f dumpFilter
	cmd := &cobra.Command{
		Use: "dump", Short: "Print the statements of the state log as lines of JSON",
		Long: `Prints one line of JSON for each statement of the state log, in its order: where its
frame begins, its ID, kind, author, epoch, sequence number and body, and what becomes
of it when the log is replayed (held, waits, superseded, refused or bad).`,
		Args: func(_ *cobra.Command, args []string) error { return usage(noArgs(args)) },
		RunE: func(*cobra.Command, []string) error { return dumpState(*data, f, stdout) },
	}
	cmd.Flags().StringVar(&f.kind, "kind", "", "only statements of this kind")
	cmd.Flags().StringVar(&f.author, "author", "", "only statements by this key (a peer ID)")
	cmd.Flags().StringVar(&f.instance, "instance", "", "only statements about this instance ID")
	return cmd
}

// auditState audits the log of a data directory.
func auditState(data string, each func(crdt.Found) error) (crdt.Audit, error) {
	path := filepath.Join(data, "network.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return crdt.Audit{}, api.Problemf(api.ExitNotFound, "%s is no node's data directory: it has no network.json", data).
			WithHint("name it by --data DIR")
	}
	if err != nil {
		return crdt.Audit{}, err
	}
	var m membership
	if err := json.Unmarshal(b, &m); err != nil {
		return crdt.Audit{}, fmt.Errorf("%s: %w", path, err)
	}
	a, err := crdt.AuditLog(filepath.Join(data, "state"), m.network(), m.Root, automerge.New(), each)
	if errors.Is(err, fs.ErrNotExist) {
		return a, api.Problemf(api.ExitNotFound, "%s holds no state log", data).WithHint("start formd: it makes one, and peers give back what they hold")
	}
	if errors.Is(err, crdt.ErrInUse) {
		return a, api.Problemf(api.ExitFailed, "a formd runs on %s", data).WithHint("stop it first; form doctor looks at a running node")
	}
	return a, err
}

// stateReport is the answer of verify.
type stateReport struct {
	Log        string         `json:"log"`
	Bytes      int64          `json:"bytes"`
	Frames     int            `json:"frames"`
	Kinds      map[string]int `json:"kinds"` // frames, by kind
	Fates      map[string]int `json:"fates"` // frames, by what becomes of them
	Bad        []badFrame     `json:"bad"`   // the first maxBad that do not verify, or are refused
	Damage     *damage        `json:"damage"`
	Resync     bool           `json:"resync"` // state was lost and has not come back yet
	Members    int            `json:"members"`
	Nodes      int            `json:"nodes"`
	Instances  int            `json:"instances"`
	Statements int            `json:"statements"` // that count
	OK         bool           `json:"ok"`
}

type badFrame struct {
	Offset int64  `json:"offset"`
	Fate   string `json:"fate"`
	Error  string `json:"error"`
}

type damage struct {
	Offset int64  `json:"offset"`
	Rest   int64  `json:"rest"` // bytes from there on
	Error  string `json:"error"`
}

// maxBad bounds the bad frames that are listed.
const maxBad = 20

func verifyState(data string, asJSON bool, stdout io.Writer) error {
	r := stateReport{Log: filepath.Join(data, "state", "state.log"), Kinds: map[string]int{}, Fates: map[string]int{}, Bad: []badFrame{}}
	a, err := auditState(data, func(f crdt.Found) error {
		kind := "unreadable"
		if f.Statement != nil {
			kind = string(f.Statement.Kind)
		}
		r.Kinds[kind]++
		r.Fates[string(f.Fate)]++
		if (f.Fate == crdt.FateBad || f.Fate == crdt.FateRefused) && len(r.Bad) < maxBad {
			r.Bad = append(r.Bad, badFrame{f.Offset, string(f.Fate), f.Err.Error()})
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.Bytes, r.Frames, r.Resync = a.Size, a.Frames, a.Resync
	r.Members, r.Nodes, r.Instances = len(a.View.Members()), len(a.View.Nodes()), len(a.View.Instances())
	r.Statements = r.Fates[string(crdt.FateHeld)]
	if a.Damage != nil {
		r.Damage = &damage{a.Good, a.Size - a.Good, a.Damage.Error()}
	}
	r.OK = r.Damage == nil && r.Fates[string(crdt.FateBad)] == 0
	if asJSON {
		err = json.NewEncoder(stdout).Encode(r)
	} else {
		err = r.print(stdout)
	}
	if err != nil || r.OK {
		return err
	}
	return api.Problemf(api.ExitFailed, "the state log is damaged").
		WithHint("start formd: it keeps what is whole, and peers give back the rest; what it cuts off stays in state.log.cut")
}

func (r stateReport) print(w io.Writer) error {
	p := &lines{w: w}
	p.printf("%s: %d bytes, %d frames\n", r.Log, r.Bytes, r.Frames)
	for _, k := range sortedNames(r.Kinds) {
		p.printf("  %-12s %d\n", k, r.Kinds[k])
	}
	for _, f := range []crdt.Fate{crdt.FateHeld, crdt.FateSuperseded, crdt.FateWaits, crdt.FateRefused, crdt.FateBad} {
		if n := r.Fates[string(f)]; n > 0 {
			p.printf("%s: %d\n", f, n)
		}
	}
	for _, b := range r.Bad {
		p.printf("%s at byte %d: %s\n", b.Fate, b.Offset, b.Error)
	}
	if d := r.Damage; d != nil {
		p.printf("damaged at byte %d: %s; %d bytes from there on are not read\n", d.Offset, d.Error, d.Rest)
	}
	if r.Resync {
		p.printf("state was lost at an earlier start: the node decides nothing before a peer has given it back\n")
	}
	p.printf("replays to %d members, %d nodes, %d instances\n", r.Members, r.Nodes, r.Instances)
	if r.OK {
		p.printf("ok\n")
	}
	return p.err
}

// lines keeps the first error of writing.
type lines struct {
	w   io.Writer
	err error
}

func (l *lines) printf(format string, args ...any) {
	if l.err == nil {
		_, l.err = fmt.Fprintf(l.w, format, args...)
	}
}

func sortedNames(m map[string]int) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// dumpFilter says which statements are printed; empty fields admit all.
type dumpFilter struct{ kind, author, instance string }

// dumped is a line of dump.
type dumped struct {
	Offset    int64      `json:"offset"`
	Verdict   crdt.Fate  `json:"verdict"`
	Error     string     `json:"error,omitempty"`
	ID        string     `json:"id,omitempty"`
	Kind      stmt.Kind  `json:"kind,omitempty"`
	Author    *stmt.Key  `json:"author,omitempty"`
	Epoch     uint64     `json:"epoch"`
	Seq       uint64     `json:"seq"`
	Time      *time.Time `json:"time,omitempty"`
	Deps      []string   `json:"deps,omitempty"`
	Instances []string   `json:"instances,omitempty"` // it is about
	Size      int        `json:"size"`
	Body      any        `json:"body,omitempty"`
}

func dumpState(data string, f dumpFilter, stdout io.Writer) error {
	if f.author != "" {
		if _, err := stmt.ParseKey(f.author); err != nil {
			return api.Problemf(api.ExitUsage, "--author: %v", err)
		}
	}
	if f.instance != "" {
		if _, err := crdt.ParseDocID(f.instance); err != nil {
			return api.Problemf(api.ExitUsage, "--instance: %v", err).WithHint("an instance's ID, not its name: form manage ls --json")
		}
	}
	out := json.NewEncoder(stdout)
	_, err := auditState(data, func(found crdt.Found) error {
		d := dump(found)
		if f.kind != "" && string(d.Kind) != f.kind || f.author != "" && (d.Author == nil || d.Author.String() != f.author) ||
			f.instance != "" && !slices.Contains(d.Instances, f.instance) {
			return nil
		}
		return out.Encode(d)
	})
	return err
}

func dump(f crdt.Found) dumped {
	d := dumped{Offset: f.Offset, Verdict: f.Fate, Size: len(f.Raw)}
	if f.Err != nil {
		d.Error = f.Err.Error()
	}
	st := f.Statement
	if st == nil {
		return d
	}
	d.ID, d.Kind, d.Author, d.Epoch, d.Seq = hex.EncodeToString(st.ID[:]), st.Kind, &st.Author, st.Epoch, st.Seq
	if st.Time != 0 {
		at := time.Unix(st.Time, 0).UTC()
		d.Time = &at
	}
	for _, dep := range st.Deps {
		d.Deps = append(d.Deps, hex.EncodeToString(dep[:]))
	}
	var body map[string]any
	if err := stmt.Unmarshal(st.Body, &body); err != nil {
		d.Error = errors.Join(f.Err, err).Error()
		return d
	}
	d.Instances = aboutInstances(st, body)
	d.Body = readable("", body)
	return d
}

// aboutInstances are the instances that a statement names.
func aboutInstances(st *stmt.Statement, body map[string]any) (out []string) {
	add := func(v any) {
		if b, ok := v.([]byte); ok && len(b) == len(crdt.DocID{}) {
			out = append(out, crdt.DocID(b).String())
		}
	}
	switch st.Kind {
	case stmt.KindClaim:
		add(body["inst"])
	case stmt.KindOwner:
		for _, list := range []string{"live", "dead"} {
			ids, _ := body[list].([]any)
			for _, id := range ids {
				add(id)
			}
		}
	case stmt.KindSpec, stmt.KindSecret:
		owner := st.Author
		if own, ok := body["own"].([]byte); ok && len(own) == len(owner) {
			owner = stmt.Key(own)
		}
		dev, _ := body["dev"].([]byte)
		ctr, _ := body["ctr"].(int64)
		if len(dev) == len(stmt.Key{}) && ctr >= 0 {
			out = append(out, crdt.InstanceID(owner, stmt.Key(dev), uint64(ctr)).String())
		}
	}
	return out
}

// keyFields and idFields are the fields whose bytes are keys and instance IDs;
// all other bytes are shown in hexadecimal.
var (
	keyFields = []string{"key", "operator", "owner", "own", "dev", "invite", "to", "operators", "delegates", "node"}
	idFields  = []string{"inst", "live", "dead"}
)

// readable is a decoded value as JSON takes it.
func readable(field string, v any) any {
	switch v := v.(type) {
	case []byte:
		switch {
		case slices.Contains(keyFields, field) && len(v) == len(stmt.Key{}):
			return stmt.Key(v).String()
		case slices.Contains(idFields, field) && len(v) == len(crdt.DocID{}):
			return crdt.DocID(v).String()
		}
		return hex.EncodeToString(v)
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			out[i] = readable(field, e)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = readable(k, e)
		}
		return out
	case map[any]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			name := fmt.Sprint(k) // canonical maps have text keys
			out[name] = readable(name, e)
		}
		return out
	}
	return v
}
