// Package build executes a Formfile on a base, in a sandbox, and gives a pack.
//
// Each COPY, INSTALL and RUN is a step: an overlay on the base and the steps
// before it, whose difference becomes one squashfs layer. Steps are cached by
// content, so an unchanged prefix of a Formfile is not run again.
//
// Guarantees:
//   - The same base, Formfile, context and author key give the same CID,
//     as long as INSTALL gets the same packages and RUN does the same thing:
//     times, order, owners and overlay marks are normalised here, and what
//     package managers leave behind (logs, caches, backups) is removed.
//   - Accounts are made by the guest, so no layer holds one; password hashes
//     are in the run configuration, salted from the author's key.
//   - COPY reads nothing outside the context, through symlinks or globs either.
//   - A step sees its own root file system, processes, IPC, host name and,
//     unless it is INSTALL or RUN, an empty network. No host path is mounted.
//   - A build that fails or is cancelled leaves no mount, loop device, process
//     or temporary directory; what a killed build left is removed by the next.
//
// Not guaranteed: protection from a hostile kernel exploit in RUN (a container
// is no virtual machine), or from what INSTALL and RUN do on the network: they
// share the host's, loopback included. Build is for Formfiles one chose to run.
//
// COPY of a directory or a glob leaves out what .formignore lists (its language
// is .gitignore's), the Formfile, .formignore and any .git; naming one of the
// last three copies it. Symlinks below a directory are copied as they are; one
// that is itself a source is followed, inside the context. Permissions become
// 0755 (directories, and files that their owner may run) or 0644, times [Epoch],
// and the owner root, or in a home the user of it.
// formfile.Copy says when the destination is a directory.
//
// The program that calls Build must call [SandboxMain] first thing in main: the
// sandbox is the same binary, started again. Building needs Linux 5.11, mksquashfs
// (squashfs-tools 4.5), and root or a user with a range in /etc/subuid and the
// uidmap package.
package build

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// MaxLayers is the number of layers of a pack; the steps past it are merged
// into the last.
const MaxLayers = 16

// Store is what the builder needs of *store.Store.
type Store interface {
	Base(ctx context.Context, c cid.Cid) (*store.Base, error)
	Path(e store.Entry) (string, error)
	AddImage(ctx context.Context, path, kind, format string) (store.Entry, error)
	PutPack(ctx context.Context, r store.Root, key ed25519.PrivateKey) (cid.Cid, error)
}

// Options of a build.
type Options struct {
	Context string         // directory that COPY reads; required
	File    *formfile.File // parsed, valid; required
	// Formfile is the path of the Formfile relative to Context, which COPY of a
	// directory leaves out, as it does a "Formfile" there. Default "Formfile"; one
	// outside the context is harmless.
	Formfile string
	Store    Store              // required
	Base     cid.Cid            // what File.From resolved to; complete in Store; required
	CacheDir string             // made with mode 0700; may be shared by builds at the same time; required
	NoCache  bool               // run every step; the results are still cached
	Key      ed25519.PrivateKey // the author; signs the pack and salts passwords; required
	Reporter Reporter           // default: silent
	Logger   *slog.Logger       // default: discard

	// CacheBytes bounds the cached steps; the least recently used go first when
	// a build ends. Default 10 GiB. Bases and the package cache do not count.
	CacheBytes int64

	maxLayers int // MaxLayers, or fewer in tests
}

// Result of a build.
type Result struct {
	CID         cid.Cid
	Root        store.Root    // as given to Store.PutPack
	Layers      []store.Entry // topmost first, as in Root
	Steps       int           // steps of the Formfile
	CachedSteps int           // of them, those that did not run
	Duration    time.Duration
	Warnings    []string // one line each, with a place where there is one
}

// ErrUnsupported says that this machine cannot build: not Linux, or the kernel,
// a tool or a privilege is missing. The text of the error says which.
var ErrUnsupported = errors.New("this machine cannot build packs")

// ContextError is something wrong with what a Formfile names, or a .formignore
// says: a source that is missing or leaves the context, an unreadable file, a
// --chown name or --scope user that nobody has. Several come as one error.
type ContextError struct {
	File string       // the Formfile or .formignore
	Pos  formfile.Pos // of the word
	Msg  string
}

func (e *ContextError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Pos.Line, e.Pos.Col, e.Msg)
}

// StepError is a step that failed.
type StepError struct {
	Index    int // 1-based, as in the header line
	Total    int
	Step     formfile.Step
	File     string
	Pos      formfile.Pos // of the step, or the word of it that cannot be
	ExitCode int          // 128+n for signal n
	Tail     string       // the last lines of its output
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s:%d:%d: step %d of %d failed with exit code %d: %s",
		e.File, e.Pos.Line, e.Pos.Col, e.Index, e.Total, e.ExitCode, firstLine(e.Step.Text))
}

// StepInfo says which step a report is about.
type StepInfo struct {
	Index, Total int    // "[2/5]"
	Text         string // one line
}

// StepOutcome says how a step ended well.
type StepOutcome struct {
	Cached    bool
	LayerSize int64 // bytes of its layer, 0 without one
	Duration  time.Duration
}

// Reporter hears about progress, from one goroutine at a time.
type Reporter interface {
	StepStarted(StepInfo)
	// Output is a piece of a step's stdout and stderr as it comes, not
	// necessarily whole lines; p is only valid during the call.
	Output(p []byte)
	StepDone(StepInfo, StepOutcome)
}
