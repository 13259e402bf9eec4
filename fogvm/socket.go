package fogvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/fogvm/guest"
)

// shimSocket is the name of the shim's unix socket in the run directory.
const shimSocket = "shim.sock"

// inFolder calls use with a short path that means dir/name, whatever dir's
// length: a unix socket's path may have 107 bytes, a data directory has more.
func inFolder(dir, name string, use func(path string) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return use(fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
}

func listenIn(dir, name string) (net.Listener, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var l *net.UnixListener
	err := inFolder(dir, name, func(path string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		// The path is only valid now; the shim removes the file itself.
		l.SetUnlinkOnClose(false)
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return l, nil
}

func dialIn(ctx context.Context, dir, name string) (net.Conn, error) {
	var c net.Conn
	err := inFolder(dir, name, func(path string) (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, "unix", path)
		return err
	})
	return c, err
}

// shimRequest opens every connection to a shim, as one line of JSON; the shim
// answers with a shimReply line. What follows depends on Op.
type shimRequest struct {
	// Op is one of the op constants.
	Op   string             `json:"op"`
	Port int                `json:"port,omitempty"`
	Exec *guest.ExecRequest `json:"exec,omitempty"`
	Keys []string           `json:"keys,omitempty"`
	// Secrets is the whole set.
	Secrets []guest.Secret `json:"secrets,omitempty"`
	// Until is when the VM must be paused unless its lease is renewed.
	Until time.Duration `json:"until,omitempty"`
	// Force skips the guest's part of a stop.
	Force bool `json:"force,omitempty"`
}

const (
	opStatus    = "status"    // a line of JSON Status now and at each change
	opDial      = "dial"      // the bytes of a TCP connection to guest port Port
	opDialUDP   = "udp"       // datagrams to and from guest port Port, see relayDatagrams
	opExec      = "exec"      // exec frames
	opStop      = "stop"      // the connection closes when the shim has ended
	opReboot    = "reboot"    // as stop, for the guest; the shim boots it again
	opAuthorize = "authorize" // replaces the owner's SSH keys in the guest
	opSecrets   = "secrets"   // replaces the guest's secrets
	opHold      = "hold"      // lets a fenced VM run until Until
	opMesh      = "mesh"      // frames of the guest's mesh, as a MeshPort has them
	opMeshNews  = "mesh-news" // a stream of guest.News
)

type shimReply struct {
	Error string `json:"error,omitempty"`
}

// maxShimLine bounds a request and a status line.
const maxShimLine = guest.MaxConfigBytes

// lineConn reads lines and then raw bytes from one connection.
type lineConn struct {
	net.Conn
	r *bufio.Reader
}

func newLineConn(c net.Conn) *lineConn { return &lineConn{Conn: c, r: bufio.NewReader(c)} }

func (l *lineConn) Read(p []byte) (int, error) { return l.r.Read(p) }

// CloseWrite half-closes the connection.
func (l *lineConn) CloseWrite() error { return closeWrite(l.Conn) }

func (l *lineConn) readLine(v any) error {
	var line []byte
	for {
		part, err := l.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxShimLine {
			return errors.New("line too long")
		}
		if err == nil {
			return json.Unmarshal(line, v)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func (l *lineConn) writeLine(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = l.Write(append(data, '\n'))
	return err
}

// shimTimeout is how long a shim may take to answer what it answers by itself.
// A variable for tests.
var shimTimeout = 5 * time.Second

// timeout bounds the wait for the reply; what follows it takes its time.
func (r shimRequest) timeout() time.Duration {
	switch r.Op {
	case opDial, opDialUDP, opExec, opReboot, opAuthorize, opSecrets, opMeshNews:
		return shimTimeout + 25*time.Second // the guest's part
	}
	return shimTimeout
}

// openShim sends a request to the shim of dir and returns the connection after
// a good reply. No live shim: ErrNotRunning.
func openShim(ctx context.Context, dir string, req shimRequest) (*lineConn, error) {
	asked, cancel := context.WithTimeout(ctx, req.timeout())
	defer cancel()
	raw, err := dialIn(asked, dir, shimSocket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
	}
	c := newLineConn(raw)
	stop := context.AfterFunc(asked, func() { raw.SetDeadline(time.Unix(1, 0)) })
	var reply shimReply
	if err = c.writeLine(req); err == nil {
		err = c.readLine(&reply)
	}
	switch {
	case !stop():
		err = asked.Err()
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrNotRunning, err)
	case reply.Error != "":
		err = errors.New(reply.Error)
	default:
		return c, nil
	}
	raw.Close()
	return nil, fmt.Errorf("%s: %w", req.Op, err)
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// relay moves bytes both ways until both directions have ended, passing half
// closes on, and closes both ends.
func relay(a, b net.Conn) {
	var both sync.WaitGroup
	move := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if err != nil {
			// A broken direction leaves nothing to wait for in the other.
			a.Close()
			b.Close()
			return
		}
		// The peer may be gone already, which the other direction notices.
		_ = closeWrite(to)
	}
	both.Go(func() { move(a, b) })
	both.Go(func() { move(b, a) })
	both.Wait()
	a.Close()
	b.Close()
}

// relayOne moves bytes one way until either end is done; the caller closes.
func relayOne(to io.Writer, from io.Reader) {
	// Which side ended does not matter to an exec stream: both are closed.
	_, _ = io.Copy(to, from)
}
