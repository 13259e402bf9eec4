package proc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/formthefog/formation/crdt/stmt"
)

// client asks one daemon over its unix socket, as docs/openapi.yaml says.
type client struct{ http *http.Client }

// maxAnswer bounds what a daemon may answer, and callLimit how long it may take: a
// machine that runs many of them is slow.
const (
	maxAnswer = 8 << 20
	callLimit = 15 * time.Second
)

func newClient(socket string) *client {
	return &client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, // the daemon may be killed at any time
	}}}
}

// call sends body, unless it is nil, and reads the answer into out.
func (c *client) call(ctx context.Context, method, path string, body, out any) (err error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var sent io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://formd"+path, sent)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("%s %s: %w", method, path, err)
	case len(raw) > maxAnswer:
		return fmt.Errorf("%s %s: more than %d bytes", method, path, maxAnswer)
	case resp.StatusCode/100 != 2:
		var problem struct{ Detail string }
		if err := json.Unmarshal(raw, &problem); err != nil {
			problem.Detail = string(raw[:min(len(raw), 200)])
		}
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, problem.Detail)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	return nil
}

func get[T any](ctx context.Context, c *client, path string) (out T, err error) {
	err = c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

func post[T any](ctx context.Context, c *client, path string, body any) (out T, err error) {
	err = c.call(ctx, http.MethodPost, path, body, &out)
	return out, err
}

// What is read of the API's answers.
type (
	self struct {
		Node    struct{ Key stmt.Key }
		Network struct {
			ID   string
			Root stmt.Key
		}
	}
	status struct {
		NodesAlive int `json:"nodes_alive"`
		Local      int `json:"local_vms"`
	}
	invite     struct{ Ticket string }
	statements struct {
		Statements [][]byte `json:"statements"`
	}
	submitted struct{ IDs []string }
	instance  struct {
		ID, Name, Pack string
		Owner          stmt.Key
		Desired        struct{ Replicas int }
		Spec           struct {
			Restart   uint64
			Partition string
		}
		Replicas []struct {
			Node  stmt.Key
			Slot  int
			Ready bool
		}
	}
)
