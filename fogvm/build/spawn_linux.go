package build

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An inputError is what the author of a Formfile can mend. At is the word that it
// is about: atChown, the path of a WORKDIR, or "" for the instruction's last.
type inputError struct{ at, msg string }

func (e *inputError) Error() string { return e.msg }

const atChown = "--chown"

func refuse(format string, args ...any) error { return &inputError{msg: fmt.Sprintf(format, args...)} }

// A spawner starts helpers, as root directly, else as root of a user namespace.
type spawner struct {
	userns bool
	uids   idRange
	gids   idRange
}

// An idRange is a user's line in /etc/subuid or /etc/subgid.
type idRange struct{ start, count int }

func newSpawner() (*spawner, error) {
	// The program that builds may have been given files by whoever started it:
	// a directory of the host, once open, is a way out of any sandbox.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("%w: mark inherited files: %w", ErrUnsupported, err)
	}
	if os.Geteuid() == 0 {
		return &spawner{}, nil
	}
	s := &spawner{userns: true}
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: %s is missing: install the package uidmap, or build as root", ErrUnsupported, tool)
		}
	}
	me, err := user.Current()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	if s.uids, err = subRange("/etc/subuid", me); err == nil {
		s.gids, err = subRange("/etc/subgid", me)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w; run: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", ErrUnsupported, err, me.Username)
	}
	return s, nil
}

func subRange(file string, me *user.User) (idRange, error) {
	f, err := os.Open(file)
	if err != nil {
		return idRange{}, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Split(sc.Text(), ":")
		if len(fields) != 3 || fields[0] != me.Username && fields[0] != me.Uid {
			continue
		}
		start, serr := strconv.Atoi(fields[1])
		count, cerr := strconv.Atoi(fields[2])
		if serr == nil && cerr == nil && count >= 65535 {
			return idRange{start, count}, nil
		}
	}
	return idRange{}, fmt.Errorf("%s has no range of 65535 for %s", file, me.Username)
}

// A call is one helper process: its request and its standard streams, any of
// which may be nil.
type call struct {
	req     request
	network bool // share the host's
	stdin   *os.File
	stdout  io.Writer
	stderr  io.Writer
}

// maxReply bounds what a helper answers, which nobody but the helper writes.
const maxReply = 1 << 20

// killDelay is how long a cancelled broker may take to end its helper.
const killDelay = 10 * time.Second

// do runs a helper to its end. When it returns, every process of it is gone,
// and with them their mounts.
func (s *spawner) do(ctx context.Context, c call) (reply, error) {
	// The helper gets its death signal when this thread ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.req.Userns = s.userns
	body, err := json.Marshal(c.req)
	if err != nil {
		return reply{}, err
	}
	reqR, reqW, err := os.Pipe()
	if err != nil {
		return reply{}, err
	}
	defer reqW.Close()
	defer reqR.Close()
	repR, repW, err := os.Pipe()
	if err != nil {
		return reply{}, err
	}
	defer repR.Close()
	defer repW.Close()

	cmd, gate, err := s.command(ctx, c.network)
	if err != nil {
		return reply{}, err
	}
	said := &tail{}
	cmd.ExtraFiles = append([]*os.File{reqR, repW}, cmd.ExtraFiles...)
	if c.stdin != nil {
		cmd.Stdin = c.stdin
	}
	cmd.Stdout, cmd.Stderr = c.stdout, c.stderr
	if c.stderr == nil {
		cmd.Stderr = said
	}
	cmd.WaitDelay = killDelay
	if err := cmd.Start(); err != nil {
		gate.close()
		return reply{}, fmt.Errorf("%w: start the sandbox: %w", ErrUnsupported, err)
	}
	reqR.Close()
	repW.Close()
	if err := gate.open(ctx, s, cmd.Process.Pid); err != nil {
		return reply{}, errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}
	// A helper that dies early makes this fail; its end says why.
	go func() {
		_, _ = reqW.Write(body)
		_ = reqW.Close()
	}()
	var rep reply
	decodeErr := json.NewDecoder(io.LimitReader(repR, maxReply)).Decode(&rep)
	repR.Close() // a helper that says more must not wait for a reader
	waitErr := cmd.Wait()
	if ctx.Err() != nil {
		return reply{}, ctx.Err()
	}
	if decodeErr != nil || waitErr != nil {
		return reply{}, fmt.Errorf("the sandbox died: %w: %s", errors.Join(waitErr, decodeErr), lastLine([]byte(said.String())))
	}
	return rep, s.replyError(rep)
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func (s *spawner) replyError(rep reply) error {
	switch {
	case rep.Error == "":
		return nil
	case rep.Kind == kindContext:
		return &inputError{rep.At, rep.Error}
	case rep.Kind == kindMachine && s.userns:
		return fmt.Errorf("%w: %s (in a user namespace: some systems restrict them, e.g. sysctl kernel.apparmor_restrict_unprivileged_userns; building as root works)", ErrUnsupported, rep.Error)
	case rep.Kind == kindMachine:
		return fmt.Errorf("%w: %s", ErrUnsupported, rep.Error)
	}
	return errors.New(rep.Error)
}

// A gate holds a process back until its user IDs are mapped. As root there is
// none.
type gate struct{ r, w *os.File }

func (g gate) close() {
	if g.r != nil {
		g.r.Close()
		g.w.Close()
	}
}

func (g gate) open(ctx context.Context, s *spawner, pid int) error {
	if g.r == nil {
		return nil
	}
	defer g.close()
	maps := []struct {
		tool string
		own  int
		sub  idRange
	}{{"newuidmap", os.Getuid(), s.uids}, {"newgidmap", os.Getgid(), s.gids}}
	for _, m := range maps {
		out, err := exec.CommandContext(ctx, m.tool, strconv.Itoa(pid), "0", strconv.Itoa(m.own), "1", "1", strconv.Itoa(m.sub.start), strconv.Itoa(m.sub.count)).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s: %w: %s", ErrUnsupported, m.tool, err, lastLine(out))
		}
	}
	_, err := g.w.Write([]byte{1})
	return err
}

func (s *spawner) command(ctx context.Context, network bool) (*exec.Cmd, gate, error) {
	if !s.userns {
		return helperCommand(ctx, network, true), gate{}, nil
	}
	cmd := helperCommand(ctx, network, false)
	cmd.Args = []string{usernsName}
	if network {
		cmd.Args = append(cmd.Args, networkArg)
	}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	r, w, err := os.Pipe()
	if err != nil {
		return nil, gate{}, err
	}
	cmd.ExtraFiles = []*os.File{r}
	return cmd, gate{r, w}, nil
}
