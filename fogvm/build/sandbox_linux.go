package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// SandboxMain must be the first call of main in a program that uses Build. In a
// process that Build started it never returns; in any other it returns at once.
func SandboxMain() {
	switch os.Args[0] {
	case helperName:
		os.Exit(helperMain())
	case usernsName:
		os.Exit(usernsMain())
	case brokerName:
		os.Exit(brokerMain())
	}
}

// helperMain does one request and answers on fd 4. Its exit status only says
// whether there is an answer.
func helperMain() int {
	// Capabilities, keyring and no_new_privs belong to a thread; what runs in
	// the sandbox inherits them from this one.
	runtime.LockOSThread()
	// What runs in the sandbox inherits none of this process's files.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: close inherited files:", err)
		return 1
	}
	in, out := os.NewFile(3, "request"), os.NewFile(4, "reply")
	var req request
	if err := json.NewDecoder(in).Decode(&req); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: read request:", err)
		return 1
	}
	rep, err := serve(&req)
	if err != nil {
		var input *inputError
		rep.Error = err.Error()
		switch {
		case errors.Is(err, errMachine):
			rep.Kind = kindMachine
		case errors.As(err, &input):
			rep.Kind, rep.At, rep.Error = kindContext, input.at, input.msg
		}
	}
	if err := json.NewEncoder(out).Encode(rep); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: write reply:", err)
		return 1
	}
	return 0
}

func serve(req *request) (reply, error) {
	// No core dumps of a half-privileged process, a fixed umask, and nothing
	// that runs inside may look into this process.
	unix.Umask(0o022)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return reply{}, fmt.Errorf("%w: %w", errMachine, err)
	}
	switch req.Mode {
	case modeRun, modeCopy:
		return serveInRoot(req)
	case modePack:
		return servePack(req)
	case modeInspect:
		return serveInspect(req)
	case modeExtract:
		return reply{}, extract(req)
	case modeRemove:
		return reply{}, os.RemoveAll(req.Target)
	}
	return reply{}, fmt.Errorf("unknown mode %q", req.Mode)
}

// serveInRoot runs or copies in the image as this process's root.
func serveInRoot(req *request) (reply, error) {
	m, err := mountStack(req.Stack)
	if err != nil {
		return reply{}, err
	}
	if err := m.overlay(req.Work, req.Userns); err != nil {
		return reply{}, err
	}
	if err := unix.Sethostname([]byte("build")); err != nil {
		return reply{}, fmt.Errorf("%w: set host name: %w", errMachine, err)
	}
	// A fresh session keyring; not every kernel has keyrings.
	if _, err := unix.KeyctlJoinSessionKeyring("formation-build"); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
		return reply{}, fmt.Errorf("%w: join keyring: %w", errMachine, err)
	}
	if req.Mode == modeCopy {
		if err := m.enterForCopy(); err != nil {
			return reply{}, err
		}
		return reply{}, unpackCopy(req.Copy, os.Stdin)
	}
	if err := m.enterRoot(req.Run.hostDirs()); err != nil {
		return reply{}, err
	}
	return runCommands(req.Run)
}

func servePack(req *request) (reply, error) {
	signal.Ignore(syscall.SIGPIPE) // writing to mksquashfs says EPIPE instead
	if req.Pack.Clean {
		if err := cleanUpper(req.Pack.Uppers[0], req.Pack.Install); err != nil {
			return reply{}, err
		}
	}
	m, err := mountStack(req.Stack)
	if err != nil {
		return reply{}, err
	}
	low, err := m.lowerView(req.Userns)
	if err != nil {
		return reply{}, err
	}
	return packLayer(req.Pack, low)
}

func serveInspect(req *request) (reply, error) {
	m, err := mountStack(req.Stack)
	if err != nil {
		return reply{}, err
	}
	root, err := os.OpenRoot(m.path("base"))
	if err != nil {
		return reply{}, err
	}
	defer root.Close()
	a, err := accountsIn(root)
	if err != nil {
		return reply{}, err
	}
	_, err = root.Stat(strings.TrimPrefix(caBundle, "/"))
	return reply{Accounts: &a, HasCA: err == nil}, nil
}

// accountsIn reads the names of an image; one without /etc/passwd has none.
func accountsIn(root *os.Root) (accounts, error) {
	var texts [2]io.Reader
	for i, name := range []string{"etc/passwd", "etc/group"} {
		b, err := root.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return accounts{}, fmt.Errorf("read /%s of the image: %w", name, err)
		}
		texts[i] = strings.NewReader(string(b))
	}
	return readAccounts(texts[0], texts[1])
}

// extract unpacks an image where it cannot be mounted.
func extract(req *request) error {
	cmd := exec.Command("unsquashfs", "-no-progress", "-quiet", "-force", "-dest", req.Target, req.Stack.Base)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: unsquashfs: %w: %s", errMachine, err, lastLine(out))
	}
	return nil
}

func lastLine(b []byte) string {
	s := strings.TrimSpace(string(b))
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// usernsMain waits for its mapping (a byte on stdin's stead, fd 5) and starts
// over: only an exec as mapped root gives the namespace's capabilities.
func usernsMain() int {
	gate := os.NewFile(5, "gate")
	if _, err := gate.Read(make([]byte, 1)); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox: no user ID mapping:", err)
		return 1
	}
	if err := gate.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	err := syscall.Exec("/proc/self/exe", append([]string{brokerName}, os.Args[1:]...), os.Environ())
	fmt.Fprintln(os.Stderr, "sandbox: exec:", err)
	return 1
}

// brokerMain starts one helper as root of the user namespace, and takes it
// along when it is told to end.
func brokerMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	network := len(os.Args) > 1 && os.Args[1] == networkArg
	cmd := helperCommand(ctx, network, true)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(3, "request"), os.NewFile(4, "reply")}
	if err := runLocked(cmd); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox:", err)
		return 1
	}
	return 0
}

const networkArg = "network"

// helperCommand is the helper in its own namespaces.
func helperCommand(ctx context.Context, network, privileged bool) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{helperName}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOTRACEBACK=none"}
	if v, ok := os.LookupEnv("GORACE"); ok { // a test with the race detector sets how its helpers end
		cmd.Env = append(cmd.Env, "GORACE="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if privileged {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
		if !network {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
		}
	}
	return cmd
}

// runLocked runs cmd from one OS thread, because the death signal comes when
// the thread that started the child ends, not the process.
func runLocked(cmd *exec.Cmd) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// runCommands is PID 1 of a step: it runs the commands with few capabilities,
// then ends what they left running and takes away what was lent.
func runCommands(r *runRequest) (rep reply, err error) {
	loans, err := lend(r)
	if err != nil {
		return rep, errors.Join(err, loans.takeBack())
	}
	homes := homesOf(r.Users)
	for _, d := range append(r.Mkdirs, r.Dir) {
		if err := mkdirs(d, homes); err != nil {
			return rep, errors.Join(&inputError{d, "WORKDIR " + d + ": " + err.Error()}, loans.takeBack())
		}
	}
	if err := dropPrivileges(); err != nil {
		return rep, errors.Join(err, loans.takeBack())
	}
	err = runAll(r, &rep)
	return rep, errors.Join(err, killRest(), loans.takeBack())
}

func runAll(r *runRequest, rep *reply) (err error) {
	for i, argv := range r.Commands {
		if i > 0 && i == len(r.Commands)-1 && len(r.Packages) > 0 {
			if err := findPackages(r, rep); err != nil || rep.ExitCode != 0 {
				return err
			}
		}
		if rep.ExitCode, err = runOne(argv, r.Env, r.Dir, os.Stdout); rep.ExitCode != 0 || err != nil {
			return err
		}
	}
	return nil
}

// keptCaps is what package installation needs, and nothing that reaches out of
// the sandbox: no mknod, no ptrace, no raw sockets, no mounts.
var keptCaps = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETGID,
	unix.CAP_SETUID, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_SETFCAP, unix.CAP_AUDIT_WRITE,
}

func dropPrivileges() error {
	keep := map[uintptr]bool{}
	for _, c := range keptCaps {
		keep[c] = true
	}
	for c := uintptr(0); c <= 63; c++ {
		if keep[c] {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // past the kernel's last capability
		}
		if err != nil {
			return fmt.Errorf("%w: drop capability %d: %w", errMachine, c, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("%w: no_new_privs: %w", errMachine, err)
	}
	for which, n := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 65536} {
		var cur unix.Rlimit
		if err := unix.Getrlimit(which, &cur); err != nil {
			return err
		}
		lim := unix.Rlimit{Cur: min(n, cur.Max), Max: min(n, cur.Max)}
		if err := unix.Setrlimit(which, &lim); err != nil {
			return err
		}
	}
	return nil
}

// runOne runs one command and reaps everything, as PID 1 must.
func runOne(argv, env []string, dir string, stdout *os.File) (exit int, err error) {
	path, err := lookPath(argv[0], env, dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127, nil
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: dir, Env: env, Files: []uintptr{null.Fd(), stdout.Fd(), 2}})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", argv[0], err)
		return 126, nil
	}
	for {
		var st unix.WaitStatus
		got, err := unix.Wait4(-1, &st, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		if got != pid {
			continue
		}
		if st.Signaled() {
			return 128 + int(st.Signal()), nil
		}
		return st.ExitStatus(), nil
	}
}

// killRest ends what the commands left in the background.
func killRest() error {
	if err := unix.Kill(-1, unix.SIGKILL); errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("end background processes: %w", err)
	}
	for {
		_, err := unix.Wait4(-1, nil, 0, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("end background processes: %w", err)
		}
	}
}

// lookPath is exec.LookPath for another process's environment.
func lookPath(name string, env []string, dir string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for i := len(env) - 1; i >= 0; i-- {
		list, ok := strings.CutPrefix(env[i], "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			if !filepath.IsAbs(d) {
				d = filepath.Join(dir, d)
			}
			p := filepath.Join(d, name)
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				return p, nil
			}
		}
		break
	}
	return "", fmt.Errorf("%s: not found in the image", name)
}
