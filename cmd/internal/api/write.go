package api

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/crdt/stmt"
)

func (s *server) submit(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[SubmitRequest](r)
	if err != nil {
		return err
	}
	if len(req.Statements) == 0 {
		return Problemf(ExitUsage, "no statement was sent")
	}
	for i, raw := range req.Statements {
		if len(raw) > stmt.MaxStatement {
			return Problemf(ExitUsage, "statement %d has %d bytes; at most %d are allowed", i, len(raw), stmt.MaxStatement)
		}
	}
	ids, err := s.State.Submit(r.Context(), req.Statements...)
	if err != nil {
		return err
	}
	out := SubmitResponse{IDs: []string{}}
	for _, id := range ids {
		out.IDs = append(out.IDs, id.String())
	}
	return reply(w, out)
}

func (s *server) packs(w http.ResponseWriter, r *http.Request) error {
	out, err := s.Packs.List(r.Context())
	if err != nil {
		return err
	}
	if out == nil {
		out = []Pack{}
	}
	return reply(w, out)
}

func (s *server) pack(w http.ResponseWriter, r *http.Request) error {
	all, err := s.Packs.List(r.Context())
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.CID == r.PathValue("cid") {
			return reply(w, p)
		}
	}
	return Problemf(ExitNotFound, "this node does not hold %s", r.PathValue("cid")).
		WithHint("see who does: GET /v1/packs/{cid}/holders")
}

func (s *server) holders(w http.ResponseWriter, r *http.Request) error {
	c, v := r.PathValue("cid"), s.State.View()
	if _, err := cid.Decode(c); err != nil {
		return Problemf(ExitUsage, "%q is no CID: %v", c, err)
	}
	out := Holders{CID: c, Nodes: []stmt.Key{}, Wanted: s.Placement.Wanted(v, c)}
	for _, n := range v.Nodes() {
		if slices.Contains(n.Holds, c) {
			out.Nodes = append(out.Nodes, n.Key)
		}
	}
	return reply(w, out)
}

func (s *server) fetch(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[FetchRequest](r)
	if err != nil {
		return err
	}
	c := CallerOf(r.Context())
	if req.Pin && !c.Local {
		return Problemf(ExitNotAllowed, "only the node's own operator may pin")
	}
	if !c.Local && c.Owner.IsZero() {
		return Problemf(ExitNotAllowed, "a fetch needs a connection with an owner's session")
	}
	if len(req.From) > 64 {
		return Problemf(ExitUsage, "%d peers to fetch from; at most 64 are allowed", len(req.From))
	}
	if c.Peer != "" && !slices.Contains(req.From, c.Peer) {
		req.From = append([]string{c.Peer}, req.From...)
	}
	e := newEventWriter(w)
	var last FetchProgress
	err = s.Packs.Fetch(r.Context(), c.Owner, r.PathValue("cid"), req, func(p FetchProgress) {
		last = p
		// A peer that is gone cancels the request's context, and so the fetch.
		_ = e.send("", p)
	})
	if err == nil {
		last.Stage, last.Done = "done", true
		err = e.send("", last)
	}
	e.end(err)
	return nil
}

func (s *server) bases(w http.ResponseWriter, r *http.Request) error {
	have, err := s.Packs.List(r.Context())
	if err != nil {
		return err
	}
	out := []Base{}
	for _, b := range s.State.View().Bases() {
		here := slices.ContainsFunc(have, func(p Pack) bool { return p.CID == b.CID && p.Complete })
		out = append(out, Base{Name: b.Name, CID: b.CID, Publisher: b.Publisher, Local: here, Trusted: slices.Contains(s.Publishers, b.Publisher)})
	}
	return reply(w, out)
}

func (s *server) nameBase(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[BaseRequest](r)
	if err != nil {
		return err
	}
	out, err := s.Operator.NameBase(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, out)
}

func (s *server) invite(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[InviteRequest](r)
	if err != nil {
		return err
	}
	out, err := s.Operator.Invite(r.Context(), req)
	if err != nil {
		return err
	}
	return reply(w, out)
}

func (s *server) drain(w http.ResponseWriter, r *http.Request) error {
	req, err := decode[DrainRequest](r)
	if err != nil {
		return err
	}
	if err := s.Operator.Drain(r.Context(), req.Draining); err != nil {
		return err
	}
	return reply(w, req)
}

func (s *server) forget(w http.ResponseWriter, r *http.Request) error {
	key, err := stmt.ParseKey(r.PathValue("key"))
	if err != nil {
		return Problemf(ExitUsage, "%v", err)
	}
	if err := s.Root.Forget(r.Context(), key); err != nil {
		return err
	}
	return reply(w, Forgotten{Node: key})
}

func (s *server) nameOperator(w http.ResponseWriter, r *http.Request) error {
	key, err := stmt.ParseKey(r.PathValue("key"))
	if err != nil {
		return Problemf(ExitUsage, "%v", err)
	}
	req, err := decode[NodeOperator](r)
	if err != nil {
		return err
	}
	if err := s.Root.NameOperator(r.Context(), key, req.Operator); err != nil {
		return err
	}
	return reply(w, req)
}

// maxLogLine cuts longer log lines, in bytes.
const maxLogLine = 16 << 10

func (s *server) logs(w http.ResponseWriter, r *http.Request) error {
	v := s.State.View()
	spec, err := s.find(v, r)
	if err != nil {
		return err
	}
	if CallerOf(r.Context()).Owner != spec.Owner {
		return Problemf(ExitNotAllowed, "instance %s is another owner's", spec.ID)
	}
	o := LogOptions{Follow: r.URL.Query().Get("follow") == "true"}
	for key, to := range map[string]*int{"slot": &o.Slot, "tail": &o.Tail} {
		if q := r.URL.Query().Get(key); q != "" {
			if *to, err = strconv.Atoi(q); err != nil || *to < 0 {
				return Problemf(ExitUsage, "%s: %q is not a number from 0", key, q)
			}
		}
	}
	src, err := s.Guests.Logs(r.Context(), spec.ID, o)
	if ExitOf(err) == ExitNotFound {
		p := Problemf(ExitNotFound, "replica %d of %s does not run on this node", o.Slot, spec.Name)
		p.Status, p.Title = http.StatusMisdirectedRequest, http.StatusText(http.StatusMisdirectedRequest)
		for _, c := range v.Claims(spec.ID) {
			if c.Slot == o.Slot {
				p.Nodes = append(p.Nodes, c.Node.String())
			}
		}
		return p.WithHint("ask the node that runs it")
	}
	if err != nil {
		return err
	}
	defer src.Close()
	e := newEventWriter(w)
	e.end(copyLines(r, e, src, o.Slot))
	return nil
}

// copyLines sends each line of src as an event, and a comment when idle.
func copyLines(r *http.Request, e *eventWriter, src io.Reader, slot int) error {
	ctx := r.Context()
	lines := make(chan string)
	failed := make(chan error, 1)
	go func() {
		br := bufio.NewReaderSize(src, maxLogLine)
		for {
			b, err := br.ReadSlice('\n')
			if len(b) > 0 {
				if b[len(b)-1] == '\n' {
					b = b[:len(b)-1]
				}
				select {
				case lines <- string(b):
				case <-ctx.Done():
					failed <- ctx.Err()
					return
				}
			}
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
				failed <- err
				return
			}
		}
	}()
	idle := time.NewTicker(keepAlive)
	defer idle.Stop()
	for {
		select {
		case l := <-lines:
			if err := e.send("", LogLine{Slot: slot, Text: l}); err != nil {
				return err
			}
		case err := <-failed:
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return err
		case <-idle.C:
			if err := e.comment(); err != nil {
				return err
			}
		}
	}
}
