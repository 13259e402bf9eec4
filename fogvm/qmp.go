package fogvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/digitalocean/go-qemu/qmp"
)

// qmpClient speaks QMP over an inherited socket. go-qemu's message types are
// used; its SocketMonitor is not: it can only dial a path (a socket on disk
// that others could drive, under the path length limit), it waits for replies
// without a context, and it stops reading replies while an event is unread.
type qmpClient struct {
	conn   net.Conn
	events func(qmp.Event) // called from the reading goroutine; must not block

	mu      sync.Mutex
	lastID  int
	waiting map[int]chan qmpReply // nil once QEMU is gone
}

type qmpReply struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// maxQMPLine bounds one message; no reply we ask for comes near.
const maxQMPLine = 1 << 20

// run reads messages until the connection ends: QEMU is gone.
func (q *qmpClient) run() error {
	defer q.forget()
	scanner := bufio.NewScanner(q.conn)
	scanner.Buffer(make([]byte, 4096), maxQMPLine)
	for scanner.Scan() {
		var m struct {
			qmpReply
			Event string          `json:"event"`
			QMP   json.RawMessage `json:"QMP"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &m); err != nil {
			return fmt.Errorf("qmp: %w", err)
		}
		switch {
		case m.QMP != nil: // the greeting
		case m.Event != "":
			var e qmp.Event
			if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
				return fmt.Errorf("qmp: %w", err)
			}
			q.events(e)
		default:
			q.answer(m.qmpReply)
		}
	}
	return scanner.Err()
}

func newQMP(conn net.Conn, events func(qmp.Event)) *qmpClient {
	return &qmpClient{conn: conn, events: events, waiting: map[int]chan qmpReply{}}
}

// answer hands a reply to its command; one that nobody waits for any more is
// dropped.
func (q *qmpClient) answer(r qmpReply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if ch, ok := q.waiting[r.ID]; ok {
		delete(q.waiting, r.ID)
		ch <- r
	}
}

func (q *qmpClient) forget() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, ch := range q.waiting {
		close(ch)
	}
	q.waiting = nil
}

// errQMPGone: QEMU closed the monitor.
var errQMPGone = errors.New("qmp: QEMU is gone")

// execute runs one command without arguments.
func (q *qmpClient) execute(ctx context.Context, name string) error {
	return q.executeIf(ctx, name, func() error { return nil })
}

// executeIf runs a command unless check, which is asked at the moment of sending,
// has an error. QEMU carries commands out in the order in which they are sent.
func (q *qmpClient) executeIf(ctx context.Context, name string, check func() error) error {
	q.mu.Lock()
	if err := check(); err != nil {
		q.mu.Unlock()
		return err
	}
	if q.waiting == nil {
		q.mu.Unlock()
		return errQMPGone
	}
	q.lastID++
	id, reply := q.lastID, make(chan qmpReply, 1)
	q.waiting[id] = reply
	line := fmt.Sprintf("{\"execute\":%q,\"id\":%d}\n", name, id)
	deadline, _ := ctx.Deadline() // none is the zero time
	err := q.conn.SetWriteDeadline(deadline)
	if err == nil {
		_, err = q.conn.Write([]byte(line))
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("qmp %s: %w", name, err)
	}
	select {
	case r, ok := <-reply:
		if !ok {
			return errQMPGone
		}
		if r.Error != nil {
			return fmt.Errorf("qmp %s: %s: %s", name, r.Error.Class, r.Error.Desc)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", name, ctx.Err())
	}
}
