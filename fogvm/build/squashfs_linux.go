package build

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// squashfsArgs is the command line that turns a tar stream into a layer. Every
// choice that the tool would otherwise make by itself, or take from this
// machine, is made here and in squashfsEnv. (sqfstar is the same tool, but its
// 4.5.1 takes no -Xcompression-level.)
func squashfsArgs(image string) []string {
	return []string{
		"-", image, "-tar", "-comp", "zstd", "-Xcompression-level", "9", "-b", "131072",
		"-no-fragments", // so that chunks of unchanged files stay the same
		"-reproducible", "-root-mode", "755",
		"-exit-on-error", "-quiet", "-no-progress",
	}
}

// squashfsEnv fixes the time of the image and of its root directory, which
// -root-time does not do for a tar stream (4.5.1).
func squashfsEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "SOURCE_DATE_EPOCH=" + strconv.Itoa(Epoch)}
}

// squash runs the tool on the tar stream that write makes. It is started by the
// helper, which is root in either kind of sandbox: for a tar stream the tool
// gives the root directory to its own user, whatever -root-uid says (4.5.1).
func squash(image string, write func(io.Writer) error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	out := &tail{}
	cmd := exec.Command("mksquashfs", squashfsArgs(image)...)
	cmd.Env = squashfsEnv()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, out, out
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: mksquashfs (package squashfs-tools, 4.5 or later): %w", errMachine, err)
	}
	r.Close()
	writeErr := write(w)
	w.Close()
	toolErr := cmd.Wait()
	// A stream that broke off upsets the tool; a tool that died breaks the stream.
	if writeErr != nil && !errors.Is(writeErr, unix.EPIPE) {
		return writeErr
	}
	if toolErr != nil {
		return fmt.Errorf("mksquashfs: %w: %s", toolErr, lastLine([]byte(out.String())))
	}
	return writeErr
}
