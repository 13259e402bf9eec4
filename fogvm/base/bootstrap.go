package base

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed setup.sh
var setupHook string

//go:embed customize.sh
var customizeHook string

// packages beyond minbase: what a guest's first minute needs. sshd and its
// keys, the agent's network set-up, sudo for USER, TLS roots for apt and git,
// module loading on demand, and ping to see what is wrong.
const packages = "openssh-server,iproute2,sudo,ca-certificates,kmod,iputils-ping"

// mmdebstrapArgs is the command line that writes the tree as a tar to stdout.
// The hooks are passed by content: in unshare mode the files of the calling
// user need not be readable.
func mmdebstrapArgs(o Options, root bool) []string {
	mode := "unshare"
	if root {
		mode = "root"
	}
	return []string{
		"--mode=" + mode, "--variant=minbase", "--format=tar", "--architectures=" + o.Arch,
		"--include=" + packages,
		"--keyring=" + keyring,
		`--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*",
		"--setup-hook=" + setupHook,
		"--customize-hook=" + customizeHook,
		o.Suite, "-",
		"deb " + o.Mirror + " " + o.Suite + " main",
		"deb " + o.Mirror + " " + o.Suite + "-updates main",
		"deb " + o.SecurityMirror + " " + o.Suite + "-security main",
	}
}

// keyring is where Debian and Ubuntu install debian-archive-keyring.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// bootstrap runs mmdebstrap, streams its tree through the splitter, and leaves
// the root file system as a squashfs image at rootfs.
func bootstrap(ctx context.Context, o Options, dir, rootfs string) (*sideTree, error) {
	if _, err := os.Stat(keyring); err != nil {
		return nil, fmt.Errorf("base: the archive's keys are missing: %w (install debian-archive-keyring)", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	root := os.Geteuid() == 0
	cmd := exec.CommandContext(ctx, "mmdebstrap", mmdebstrapArgs(o, root)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "ARCH="+o.Arch, "SUITE="+o.Suite,
		"SOURCE_DATE_EPOCH="+strconv.FormatInt(o.Epoch.Unix(), 10))
	if root {
		cmd.Env = append(cmd.Env, "TMPDIR="+dir)
	}
	gently(cmd)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = dieWith()
	if o.lock != nil {
		cmd.ExtraFiles = []*os.File{o.lock}
	}
	log := &tail{progress: func(line string) {
		// "I: installing essential packages...": the steps that take time.
		if step, ok := strings.CutPrefix(line, "I: "); ok && strings.HasSuffix(step, "...") && !strings.Contains(step, "/") {
			o.say("%s", strings.TrimSuffix(step, "..."))
		}
	}}
	cmd.Stderr = log
	tree, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("base: mmdebstrap: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("base: mmdebstrap: %w", err)
	}
	side, splitErr := squashRootfs(ctx, o.Epoch, tree, dir, rootfs)
	if splitErr != nil {
		cancel() // else mmdebstrap would block on a pipe nobody reads
	}
	err = cmd.Wait()
	switch {
	case splitErr != nil && (errors.Is(splitErr, errBadTree) || err == nil || ctx.Err() != nil && !log.failed()):
		return nil, fmt.Errorf("base: %w", splitErr)
	case err != nil:
		return nil, fmt.Errorf("base: mmdebstrap: %w; it said:\n%s", err, log)
	}
	return side, nil
}

// gently makes cancellation a SIGTERM, so that the command removes its mounts
// and files, with a SIGKILL half a minute later.
func gently(cmd *exec.Cmd) {
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
}

// tail keeps the last lines of a command's output for its error message.
type tail struct {
	progress func(line string) // may be nil
	partial  []byte
	lines    []string
}

const tailLines = 25

func (t *tail) Write(p []byte) (int, error) {
	t.partial = append(t.partial, p...)
	for {
		line, rest, found := bytes.Cut(t.partial, []byte("\n"))
		if !found {
			return len(p), nil
		}
		t.partial = rest
		t.lines = append(t.lines, string(line))
		if len(t.lines) > tailLines {
			t.lines = t.lines[1:]
		}
		if t.progress != nil {
			t.progress(string(line))
		}
	}
}

func (t *tail) String() string {
	return strings.TrimRight(strings.Join(t.lines, "\n")+"\n"+string(t.partial), "\n")
}

// failed says whether mmdebstrap itself reported an error.
func (t *tail) failed() bool {
	for _, line := range t.lines {
		if strings.HasPrefix(line, "E: ") {
			return true
		}
	}
	return false
}

// maxRelease bounds how much of an InRelease file is read; its Date is in the
// first few hundred bytes.
const maxRelease = 64 << 10

// releaseDate asks the mirror when the suite was last published. The answer only
// becomes file times: what is installed is verified by apt.
func releaseDate(ctx context.Context, mirror, suite string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	url := mirror + "/dists/" + suite + "/InRelease"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return time.Time{}, fmt.Errorf("date of %s: %w", suite, err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return time.Time{}, fmt.Errorf("date of %s: %w", suite, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return time.Time{}, fmt.Errorf("date of %s: %s: %s", suite, url, res.Status)
	}
	date, err := parseReleaseDate(io.LimitReader(res.Body, maxRelease))
	if err != nil {
		return time.Time{}, fmt.Errorf("date of %s: %s: %w", suite, url, err)
	}
	return date, nil
}

func parseReleaseDate(r io.Reader) (time.Time, error) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "Date: "); ok {
			return time.Parse(time.RFC1123, value)
		}
	}
	return time.Time{}, errors.New("no Date line")
}
