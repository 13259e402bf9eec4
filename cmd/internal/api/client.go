package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// Dialer opens one connection to a formd: a unix socket or a libp2p stream.
type Dialer func(ctx context.Context) (net.Conn, error)

// Unix dials a unix socket, given as a path or as unix:///path.
func Unix(address string) Dialer {
	path := strings.TrimPrefix(address, "unix://")
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

// Client calls a formd. It is safe for concurrent use. Every error is a
// *Problem: ExitUnreachable when no connection could be made or it broke,
// ExitTimeout when ctx ran out, else what the server said.
type Client struct {
	http      *http.Client
	transport *http.Transport
}

// NewClient returns a client that opens its connections by dial and keeps idle
// ones until Close.
func NewClient(dial Dialer) *Client {
	t := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
	return &Client{http: &http.Client{Transport: t}, transport: t}
}

// Close drops idle connections. Calls in flight are not disturbed.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Health asks whether the daemon answers.
func (c *Client) Health(ctx context.Context) (Health, error) {
	return get[Health](ctx, c, "/v1/health")
}

// Node is the answering node, its network and its addresses.
func (c *Client) Node(ctx context.Context) (Self, error) { return get[Self](ctx, c, "/v1/node") }

// Nodes lists the machines of the swarm, by key.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	return get[[]Node](ctx, c, "/v1/nodes")
}

// Mesh is the answering node's part in formnet.
func (c *Client) Mesh(ctx context.Context) (Mesh, error) { return get[Mesh](ctx, c, "/v1/mesh") }

// Peers lists the answering node's connections.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return get[[]Peer](ctx, c, "/v1/peers")
}

// Status is the swarm at a glance.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "/v1/status")
}

// Doctor runs the node's self-checks.
func (c *Client) Doctor(ctx context.Context) ([]Check, error) {
	return get[[]Check](ctx, c, "/v1/doctor")
}

// Instances lists instances by ID; owner nil lists everyone's.
func (c *Client) Instances(ctx context.Context, owner *stmt.Key) ([]Instance, error) {
	path := "/v1/instances"
	if owner != nil {
		path += "?owner=" + url.QueryEscape(owner.String())
	}
	return get[[]Instance](ctx, c, path)
}

// Instance is one instance by ID; a Problem with ExitNotFound when unknown.
func (c *Client) Instance(ctx context.Context, id string) (Instance, error) {
	return get[Instance](ctx, c, "/v1/instances/"+url.PathEscape(id))
}

// Explain says why each replica is where it is.
func (c *Client) Explain(ctx context.Context, id string) (Explain, error) {
	return get[Explain](ctx, c, "/v1/instances/"+url.PathEscape(id)+"/explain")
}

// LogOptions chooses log lines of one replica.
type LogOptions struct {
	Slot   int
	Follow bool
	Tail   int // the last so many lines first; 0 means all that is kept
}

// Logs calls line for each log line of a replica that runs on the answering
// node. A replica that runs elsewhere is a Problem whose Nodes names the host:
// connect there. It needs a session of the owner.
func (c *Client) Logs(ctx context.Context, id string, o LogOptions, line func(LogLine) error) error {
	q := url.Values{"slot": {strconv.Itoa(o.Slot)}}
	if o.Follow {
		q.Set("follow", "true")
	}
	if o.Tail > 0 {
		q.Set("tail", strconv.Itoa(o.Tail))
	}
	return stream(ctx, c, http.MethodGet, "/v1/instances/"+url.PathEscape(id)+"/logs?"+q.Encode(), nil, line)
}

// Events calls event for each change of the session owner's instances, until
// ctx ends. instance may be empty for all of them.
func (c *Client) Events(ctx context.Context, instance string, event func(Event) error) error {
	path := "/v1/events"
	if instance != "" {
		path += "?instance=" + url.QueryEscape(instance)
	}
	return stream(ctx, c, http.MethodGet, path, nil, event)
}

// ClaimStatements is the raw claims on an instance, with what proves that their
// authors are nodes: for crdt.State.Apply.
func (c *Client) ClaimStatements(ctx context.Context, id string) ([][]byte, error) {
	out, err := get[Statements](ctx, c, "/v1/instances/"+url.PathEscape(id)+"/claims")
	return out.Statements, err
}

// Secrets is what may be told of an instance's secrets; the owner's only.
func (c *Client) Secrets(ctx context.Context, id string) ([]Secret, error) {
	return get[[]Secret](ctx, c, "/v1/instances/"+url.PathEscape(id)+"/secrets")
}

// MeshStatements is the raw statements that prove who an owner's peers on the mesh
// are. They are to be verified: whoever answers may have left some out.
func (c *Client) MeshStatements(ctx context.Context, owner stmt.Key) ([][]byte, error) {
	s, err := get[Statements](ctx, c, "/v1/owners/"+url.PathEscape(owner.String())+"/mesh")
	return s.Statements, err
}

// OwnerStatements is an owner's raw statements, for crdt.NewAuthor.
func (c *Client) OwnerStatements(ctx context.Context, owner stmt.Key) ([][]byte, error) {
	s, err := get[Statements](ctx, c, "/v1/owners/"+url.PathEscape(owner.String())+"/statements")
	return s.Statements, err
}

// Submit hands in raw signed statements and returns their IDs.
func (c *Client) Submit(ctx context.Context, raws [][]byte) ([]string, error) {
	r, err := send[SubmitResponse](ctx, c, http.MethodPost, "/v1/statements", SubmitRequest{Statements: raws})
	return r.IDs, err
}

// Packs lists the packs and bases of the answering node's store.
func (c *Client) Packs(ctx context.Context) ([]Pack, error) {
	return get[[]Pack](ctx, c, "/v1/packs")
}

// Pack is one pack of the answering node's store.
func (c *Client) Pack(ctx context.Context, cid string) (Pack, error) {
	return get[Pack](ctx, c, "/v1/packs/"+url.PathEscape(cid))
}

// FetchPack has the node fetch a pack and returns when it is complete there.
// Over libp2p the caller's own exchange is asked first, so it may be the only
// holder.
func (c *Client) FetchPack(ctx context.Context, cid string, r FetchRequest, progress func(FetchProgress)) error {
	done := false
	err := stream(ctx, c, http.MethodPost, "/v1/packs/"+url.PathEscape(cid)+"/fetch", r, func(p FetchProgress) error {
		done = done || p.Done
		if progress != nil {
			progress(p)
		}
		return nil
	})
	if err == nil && !done {
		return Problemf(ExitUnreachable, "the daemon stopped before the fetch was done")
	}
	return err
}

// Holders says who holds a pack and how many should.
func (c *Client) Holders(ctx context.Context, cid string) (Holders, error) {
	return get[Holders](ctx, c, "/v1/packs/"+url.PathEscape(cid)+"/holders")
}

// Bases lists the base names this node resolves.
func (c *Client) Bases(ctx context.Context) ([]Base, error) {
	return get[[]Base](ctx, c, "/v1/bases")
}

// ImportBase names a base on the node and publishes the name to the network.
func (c *Client) ImportBase(ctx context.Context, r BaseRequest) (Base, error) {
	return send[Base](ctx, c, http.MethodPost, "/v1/bases", r)
}

// Invite makes a ticket.
func (c *Client) Invite(ctx context.Context, r InviteRequest) (Invite, error) {
	return send[Invite](ctx, c, http.MethodPost, "/v1/invites", r)
}

// Drain starts or ends draining of the answering node.
func (c *Client) Drain(ctx context.Context, draining bool) error {
	_, err := send[DrainRequest](ctx, c, http.MethodPost, "/v1/node/drain", DrainRequest{Draining: draining})
	return err
}

// Forget takes a node out of the network for good. Unix socket of a node with the
// root key only.
func (c *Client) Forget(ctx context.Context, node stmt.Key) (Forgotten, error) {
	return send[Forgotten](ctx, c, http.MethodPost, "/v1/nodes/"+node.String()+"/forget", struct{}{})
}

// NameOperator says whom a node belongs to by the root's word; zero: nobody. Unix
// socket of a node with the root key only.
func (c *Client) NameOperator(ctx context.Context, node, operator stmt.Key) error {
	_, err := send[NodeOperator](ctx, c, http.MethodPost, "/v1/nodes/"+node.String()+"/operator", NodeOperator{Operator: operator})
	return err
}

func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return send[T](ctx, c, http.MethodGet, path, nil)
}

// send calls and decodes one JSON answer.
func send[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	res, err := c.do(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	// A list may be longer than a request: the server is trusted this far.
	if err := json.NewDecoder(io.LimitReader(res.Body, 64*MaxBody)).Decode(&out); err != nil {
		return out, c.transportProblem(ctx, fmt.Errorf("%s %s: %w", method, path, err))
	}
	return out, nil
}

// stream calls and hands each server-sent event's data to f.
func stream[T any](ctx context.Context, c *Client, method, path string, body any, f func(T) error) error {
	res, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	err = readEvents(res.Body, func(event string, data []byte) error {
		if event == "problem" {
			p := &Problem{}
			if err := json.Unmarshal(data, p); err != nil {
				return fmt.Errorf("problem event: %w", err)
			}
			return p
		}
		var v T
		if err := json.Unmarshal(data, &v); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		return f(v)
	})
	if err == nil {
		return nil
	}
	var p *Problem
	var broken *streamError
	switch {
	case errors.As(err, &p):
		return err
	case errors.As(err, &broken):
		return c.transportProblem(ctx, fmt.Errorf("%s %s: %w", method, path, err))
	}
	return err
}

// do sends one request and returns the answer of a 2xx status.
func (c *Client) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, Problemf(ExitUsage, "%s %s: %v", method, path, err)
		}
		if len(b) > MaxBody {
			return nil, Problemf(ExitUsage, "the request has %d bytes; at most %d are allowed", len(b), MaxBody)
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://formd"+path, r)
	if err != nil {
		return nil, Problemf(ExitUsage, "%s %s: %v", method, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportProblem(ctx, err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	p := &Problem{}
	if err := json.NewDecoder(io.LimitReader(res.Body, MaxBody)).Decode(p); err != nil || p.Exit == 0 {
		return nil, Problemf(ExitFailed, "%s %s: %s", method, path, res.Status)
	}
	return nil, p
}

func (c *Client) transportProblem(ctx context.Context, err error) error {
	var p *Problem
	switch {
	case errors.As(err, &p): // a dialer's own
		return p
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Problemf(ExitTimeout, "timed out: %v", err)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return Problemf(ExitUnreachable, "no answer from formd: %v", err)
}
