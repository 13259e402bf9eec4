package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// Conn is the host's end of the control channel of one boot. It owns the
// underlying stream. Methods may be called from any goroutine.
type Conn struct {
	session *yamux.Session
	control net.Conn
	info    Info

	patience time.Duration // with a guest that does not read control

	mu   sync.Mutex // orders writes on control
	torn error      // why nothing more can be written on control
}

// sendPatience is how long a message waits for room on the control stream. An
// agent reads it whatever else it does, and 256 KiB of messages fit in.
const sendPatience = 5 * time.Second

// Connect performs the host's half of the handshake on rw, which it owns from
// now on, and waits for the agent's hello until ctx ends. rw must be fresh:
// bytes of an earlier boot cannot be told from this one's.
func Connect(ctx context.Context, rw io.ReadWriteCloser) (*Conn, error) {
	stop := context.AfterFunc(ctx, func() { rw.Close() })
	defer stop()
	c, err := connect(rw)
	if err != nil {
		rw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("connect to guest agent: %w", err)
	}
	return c, nil
}

func connect(rw io.ReadWriteCloser) (*Conn, error) {
	if err := readPreamble(rw); err != nil {
		return nil, err
	}
	if _, err := rw.Write(preamble()); err != nil {
		return nil, err
	}
	session, err := yamux.Client(&muxGuard{ReadWriteCloser: rw}, hostMuxConfig())
	if err != nil {
		return nil, err
	}
	c := &Conn{session: session, patience: sendPatience}
	if c.control, err = c.open(openStream{Kind: streamControl}); err != nil {
		session.Close()
		return nil, err
	}
	var first toHost
	if err := readJSON(c.control, &first); err != nil {
		session.Close()
		return nil, fmt.Errorf("read hello: %w", err)
	}
	if first.Hello == nil {
		session.Close()
		return nil, fmt.Errorf("%w: no hello", ErrFrame)
	}
	c.info = *first.Hello
	c.info.Kernel = ClipReason(c.info.Kernel)
	return c, nil
}

// Info is what the agent said of itself.
func (c *Conn) Info() Info { return c.info }

// Run reads status reports until the channel ends or ctx does, and calls
// onStatus with them. A report's keys and text are bounded and well formed: the
// error names what was not and is left out. Reports that come faster than one in
// reportPace are skipped, never the last. It returns nil when ctx ended.
func (c *Conn) Run(ctx context.Context, onStatus func(Status, error)) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	latest, over := make(chan Status, 1), make(chan struct{})
	var pacing sync.WaitGroup
	defer pacing.Wait()
	defer close(latest)
	defer close(over)
	pacing.Go(func() {
		pace(latest, over, func(s Status) { onStatus(s.checked()) })
	})
	for {
		var m toHost
		if err := readJSON(c.control, &m); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read guest status: %w", err)
		}
		if m.Status != nil {
			select {
			case <-latest: // too late for that one
			default:
			}
			latest <- *m.Status // has room: nobody else sends
		}
	}
}

// reportPace is the least time between two reports that are passed on: each may
// become a file here and a signed statement in the swarm.
const reportPace = 250 * time.Millisecond

// pace hands over what latest holds, at once after a quiet time and otherwise
// one a reportPace, until latest is closed. After over nothing waits any more.
func pace(latest <-chan Status, over <-chan struct{}, do func(Status)) {
	for s := range latest {
		do(s)
		select {
		case <-time.After(reportPace):
		case <-over:
		}
	}
}

// Configure sends the guest its configuration; call it once.
func (c *Conn) Configure(cfg Config) error { return c.send(toGuest{Config: &cfg}) }

// Authorize replaces the owner's SSH keys in a running guest.
func (c *Conn) Authorize(keys []string) error { return c.send(toGuest{Authorize: &keys}) }

// SetSecrets replaces the guest's secrets; those it is to start with are sent
// before Configure.
func (c *Conn) SetSecrets(secrets []Secret) error {
	all := append([]Secret{}, secrets...) // none is a set too, and null would be no message
	return c.send(toGuest{Secrets: &all})
}

// SetTime tells the guest the time; it steps its clock when far off.
func (c *Conn) SetTime(now time.Time) error { return c.send(toGuest{Time: now.UnixNano()}) }

// Power asks for an orderly shutdown or reboot. It returns when the request is
// sent; the channel ends when the guest is gone.
func (c *Conn) Power(p Power) error { return c.send(toGuest{Power: &p}) }

// Exec starts a command and returns its stream of exec frames (see RunExec).
func (c *Conn) Exec(req ExecRequest) (net.Conn, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return c.open(openStream{Kind: streamExec, Exec: &req})
}

// Logs returns the entrypoint's output as raw bytes, from what the guest still
// buffers on. One reader at a time gets everything.
func (c *Conn) Logs() (net.Conn, error) { return c.open(openStream{Kind: streamLogs}) }

// Locate tells the guest where its peers are, all that is known of it.
func (c *Conn) Locate(where []Location) error {
	all := append([]Location{}, where[:min(len(where), MaxLocations)]...)
	return c.send(toGuest{Locate: &all})
}

// Mesh opens a stream for News, which the guest answers by MeshReports.
func (c *Conn) Mesh() (net.Conn, error) { return c.open(openStream{Kind: streamMesh}) }

// Close ends the channel and every stream on it.
func (c *Conn) Close() error { return c.session.Close() }

func (c *Conn) open(first openStream) (net.Conn, error) {
	stream, err := c.session.Open()
	if err != nil {
		return nil, fmt.Errorf("open %s stream: %w", first.Kind, err)
	}
	if err := writeJSON(stream, first); err != nil {
		stream.Close()
		return nil, fmt.Errorf("open %s stream: %w", first.Kind, err)
	}
	return stream, nil
}

// send writes one message, in bounded time. The first failure is for good: part
// of the message may have gone, and the guest could not tell where the next
// one starts.
func (c *Conn) send(m toGuest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.torn == nil {
		c.torn = errors.Join(c.control.SetWriteDeadline(time.Now().Add(c.patience)), writeJSON(c.control, m))
	}
	if c.torn != nil {
		return fmt.Errorf("send to guest: %w", c.torn)
	}
	return nil
}

// Validate checks the bounds of a request.
func (r *ExecRequest) Validate() error {
	if len(r.Argv) == 0 || r.Argv[0] == "" {
		return errors.New("exec: empty command")
	}
	size := 0
	for _, list := range [][]string{r.Argv, r.Env} {
		for _, s := range list {
			size += len(s)
		}
	}
	if len(r.Argv) > 4096 || len(r.Env) > 1024 || size > MaxConfigBytes/4 {
		return errors.New("exec: command or environment too long")
	}
	return nil
}
