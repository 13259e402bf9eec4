package fogvm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// Fake is the memory of a fake hypervisor: VMs that are only bookkeeping. Keep
// one Fake over several Managers and VMs outlive a Manager as real ones do. The
// zero value is ready.
type Fake struct {
	// Script, if set, is asked at each start how the VM is to behave.
	Script func(vm VM) FakeRun
	// Serve, if set, is the server behind every port of every VM; the default
	// answers HTTP requests with "hello from ID\n" and echoes anything else.
	Serve func(id string, port int, conn net.Conn)
	// Mesh, if set, is the guest of every VM that has a place on the mesh: its
	// WireGuard public key, and what it does with its datagrams until port ends;
	// it closes port. The default has a key that nobody knows the other half of,
	// and answers nobody.
	Mesh func(id string) (public [32]byte, serve func(port *MeshPort))
	// News, if set, is told the statements of each round that a guest is told.
	News func(id string, statements [][]byte)

	// fault, if set, is asked with the VM's ID before an operation ("adopt",
	// "watch", "authorize", "secrets"), which fails if there is an error.
	fault func(op, id string) error

	mu  sync.Mutex
	vms map[string]*fakeVM // by run directory
}

func (f *Fake) faultOf(op, id string) error {
	if f.fault == nil {
		return nil
	}
	return f.fault(op, id)
}

// FakeRun scripts one run of a fake VM. The zero value is ready at once.
type FakeRun struct {
	StartError error         // the start fails
	ReadyAfter time.Duration // time from start to ready
	Unhealthy  string        // never ready; the reason
	DieAfter   time.Duration // ends by itself, with DieReason; 0: never
	DieReason  string
	StopAfter  time.Duration // time a stop takes
}

func newFake(f *Fake) (*fakeHypervisor, error) {
	if f == nil {
		f = &Fake{}
	}
	return &fakeHypervisor{f}, nil
}

// authorized are the SSH keys of a running VM; nil when it does not run.
func (f *Fake) authorized(id string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, vm := range f.vms {
		if vm.vm.ID == id {
			vm.mu.Lock()
			defer vm.mu.Unlock()
			return vm.vm.Guest.SSHKeys
		}
	}
	return nil
}

// Secrets are those of a running VM; nil when it does not run or has none.
func (f *Fake) Secrets(id string) []guest.Secret {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, vm := range f.vms {
		if vm.vm.ID == id {
			vm.mu.Lock()
			defer vm.mu.Unlock()
			return vm.secrets
		}
	}
	return nil
}

// Kill ends a running VM as a crash would; false when it does not run.
func (f *Fake) Kill(id, reason string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, vm := range f.vms {
		if vm.vm.ID == id && vm.end(reason) {
			return true
		}
	}
	return false
}

type fakeHypervisor struct{ f *Fake }

func (h *fakeHypervisor) accel() (string, string) { return "fake", "" }

func (h *fakeHypervisor) start(_ context.Context, dir string, vm VM) (instance, error) {
	var run FakeRun
	if h.f.Script != nil {
		run = h.f.Script(vm)
	}
	if run.StartError != nil {
		return nil, run.StartError
	}
	disk, err := os.OpenFile(filepath.Join(dir, diskFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(disk.Truncate(int64(vm.DiskBytes)), disk.Close(),
		os.WriteFile(filepath.Join(dir, appLog), fmt.Appendf(nil, "%s started\n", vm.ID), 0o600),
		writeJSONFile(filepath.Join(dir, specFile), shimSpec{VM: vm})); err != nil {
		return nil, err
	}
	key, err := guest.NewHostKey()
	if err != nil {
		return nil, err
	}
	mesh, meshKey := h.f.meshOf(vm)
	v := &fakeVM{f: h.f, mesh: mesh, vm: vm, run: run, ended: make(chan struct{}), changed: make(chan struct{}),
		status: Status{ID: vm.ID, Incarnation: vm.Incarnation, Restart: vm.Restart, Phase: Launching, Accel: "fake",
			PID: os.Getpid(), ShimPID: os.Getpid(), StartedAt: time.Now(), AgentAt: time.Now(), SSHHostKey: key, MeshKey: meshKey}}
	h.f.mu.Lock()
	if h.f.vms == nil {
		h.f.vms = map[string]*fakeVM{}
	}
	h.f.vms[dir] = v
	h.f.mu.Unlock()
	v.begin(func() {
		h.f.mu.Lock()
		defer h.f.mu.Unlock()
		if h.f.vms[dir] == v {
			delete(h.f.vms, dir)
		}
	})
	return v, nil
}

func (h *fakeHypervisor) adopt(_ context.Context, dir string) (instance, error) {
	if err := h.f.faultOf("adopt", filepath.Base(dir)); err != nil {
		return nil, err
	}
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if v := h.f.vms[dir]; v != nil {
		return v, nil
	}
	return nil, ErrNotRunning
}

// fakeVM implements instance.
type fakeVM struct {
	f     *Fake
	vm    VM
	run   FakeRun
	mesh  func(*MeshPort)
	ended chan struct{}

	mu      sync.Mutex
	status  Status
	secrets []guest.Secret
	held    Status        // what it will be when it may run; Phase is empty while it does
	changed chan struct{} // closed and renewed at each change
	once    sync.Once
	onEnd   func()
}

func (v *fakeVM) begin(onEnd func()) {
	v.onEnd = onEnd
	if v.vm.Fenced {
		v.hold(0)
	}
	switch {
	case v.run.Unhealthy != "":
		v.set(func(s *Status) { s.Phase, s.Reason = Unhealthy, v.run.Unhealthy })
	case v.run.ReadyAfter == 0:
		v.ready()
	default:
		time.AfterFunc(v.run.ReadyAfter, v.ready)
	}
	if v.run.DieAfter > 0 {
		time.AfterFunc(v.run.DieAfter, func() { v.end(v.run.DieReason) })
	}
}

func (v *fakeVM) ready() {
	v.set(func(s *Status) {
		if v.held.Phase != "" {
			s = &v.held
		}
		if s.Phase == Launching {
			s.Phase, s.Ready, s.ReadyAt = Running, true, time.Now()
		}
	})
}

func (v *fakeVM) set(change func(*Status)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.status)
	close(v.changed)
	v.changed = make(chan struct{})
}

// end says whether this was the end; an empty reason means it was asked for.
func (v *fakeVM) end(reason string) (ended bool) {
	v.once.Do(func() {
		ended = true
		v.set(func(s *Status) {
			s.Phase, s.Ready, s.Reason, s.PID, s.ShimPID, s.HeldUntil = Stopped, false, reason, 0, 0, 0
			if reason != "" {
				s.Phase = Failed
			}
		})
		close(v.ended)
		go v.onEnd()
	})
	return ended
}

func (v *fakeVM) watch(ctx context.Context) <-chan Status {
	out := make(chan Status)
	go func() {
		defer close(out)
		for {
			v.mu.Lock()
			s, changed := v.status, v.changed
			v.mu.Unlock()
			select {
			case out <- s:
			case <-ctx.Done():
				return
			}
			if s.ShimPID == 0 {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			if v.f.faultOf("watch", v.vm.ID) != nil {
				return // the connection breaks
			}
		}
	}()
	return out
}

func (v *fakeVM) stop(ctx context.Context, _ bool) error {
	if v.run.StopAfter > 0 {
		select {
		case <-time.After(v.run.StopAfter):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	v.end("")
	return nil
}

func (v *fakeVM) tell(_ context.Context, req shimRequest) error {
	if err := v.f.faultOf(req.Op, v.vm.ID); err != nil {
		return err
	}
	if req.Op == opHold {
		v.hold(req.Until)
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch req.Op {
	case opAuthorize:
		v.vm.Guest.SSHKeys = req.Keys
	case opSecrets:
		v.secrets = req.Secrets
	}
	return nil
}

func (v *fakeVM) open(_ context.Context, req shimRequest) (net.Conn, error) {
	select {
	case <-v.ended:
		return nil, ErrNotRunning
	default:
	}
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		switch {
		case req.Op == opExec:
			v.serveExec(*req.Exec, theirs)
		case req.Op == opMesh:
			v.mesh(NewMeshPort(theirs))
		case req.Op == opMeshNews:
			v.serveNews(theirs)
		case v.f.Serve != nil:
			v.f.Serve(v.vm.ID, req.Port, theirs)
		default:
			v.serveTCP(theirs)
		}
	}()
	return ours, nil
}

// meshOf is the guest's part in the mesh; the key is empty when it has none.
func (f *Fake) meshOf(vm VM) (serve func(*MeshPort), key string) {
	var public [32]byte
	serve = func(p *MeshPort) {
		for err := error(nil); err == nil; {
			_, _, err = p.Receive()
		}
	}
	switch {
	case vm.Guest.Mesh == nil:
		return serve, ""
	case f.Mesh != nil:
		public, serve = f.Mesh(vm.ID)
	default:
		rand.Read(public[:])
	}
	return serve, keyText(public)
}

// serveNews takes rounds of statements and believes nothing of them.
func (v *fakeVM) serveNews(c net.Conn) {
	var told [][]byte
	for {
		n, err := guest.ReadNews(c)
		if err != nil {
			return
		}
		if told = append(told, n.Statements...); !n.End {
			continue
		}
		if v.f.News != nil {
			v.f.News(v.vm.ID, told)
		}
		if guest.WriteMeshReport(c, guest.MeshReport{Held: len(told)}) != nil {
			return
		}
		told = nil
	}
}

// serveExec "runs" any command by printing its arguments.
func (v *fakeVM) serveExec(req guest.ExecRequest, c net.Conn) {
	for _, arg := range req.Argv {
		if err := guest.WriteFrame(c, guest.FrameStdout, []byte(arg+"\n")); err != nil {
			return
		}
	}
	// The client may have left; then nobody wants the code.
	_ = guest.WriteFrame(c, guest.FrameExit, make([]byte, 4))
}

func (v *fakeVM) serveTCP(c net.Conn) {
	r := bufio.NewReader(c)
	start, err := r.Peek(4)
	if err != nil {
		return
	}
	if !bytes.Equal(start, []byte("GET ")) && !bytes.Equal(start, []byte("HEAD")) && !bytes.Equal(start, []byte("POST")) {
		_, _ = io.Copy(c, r) // ends with the client
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil || line == "\r\n" || line == "\n" {
			break
		}
	}
	body := "hello from " + v.vm.ID + "\n"
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
}
