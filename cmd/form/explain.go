package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/p2p"
	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/formfile"
)

// end reports a verb's error and returns the exit code.
func (a *app) end(err error) int {
	if err == nil {
		return api.ExitOK
	}
	var status cli.ExitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	text, hints, code := a.explain(err)
	if len(hints) == 0 && !errors.Is(err, context.Canceled) {
		hints = []string{nextStep(code)}
	}
	a.p.Fail(text, hints)
	return code
}

// explain is the one mapping from an error to what the user reads and the exit
// code. The order matters: what the user did to end it comes first, then errors
// made for the user, then what the layers below say.
func (a *app) explain(err error) (text string, hints []string, code int) {
	var (
		said        *cli.Error
		problem     *api.Problem
		unreachable *swarm.UnreachableError
		key         *swarm.KeyError
		files       formfile.ErrorList
		refused     *p2p.RefusedError
		listen      *p2p.ListenError
		bad         *kit.ConfigError
		path        *fs.PathError
	)
	text = err.Error()
	switch {
	case errors.As(err, &said):
		return said.Text, said.Hints, said.Code
	case errors.As(err, &key) && !errors.As(key.Err, &said):
		return a.explain(key.Err)
	case errors.As(err, &files):
		return text, nil, api.ExitUsage
	case errors.As(err, &bad):
		return text, []string{"correct the file, or write a new one: form kit init --force"}, api.ExitUsage
	case errors.Is(err, context.DeadlineExceeded):
		return "timed out", []string{"give it more time: --timeout"}, api.ExitTimeout
	case errors.Is(err, context.Canceled):
		return "interrupted", nil, api.ExitFailed
	case errors.As(err, &unreachable):
		return a.diagnose(unreachable)
	case errors.As(err, &problem):
		return problem.Error(), problemHints(problem), api.ExitOf(problem)
	case errors.As(err, &refused):
		return text, refusedHints(refused), api.ExitNotAllowed
	case errors.Is(err, swarm.ErrNetwork):
		return text, []string{"give the swarm's ticket: --ticket form1… (form net invite prints one)"}, api.ExitNotAllowed
	case errors.Is(err, p2p.ErrNoNetwork):
		return text, []string{"the address must be a formd's: its `ready` line and `form node status` show it"}, api.ExitUnreachable
	case errors.As(err, &listen):
		return text, nil, api.ExitFailed
	case errors.Is(err, keystore.ErrPassword):
		return text, []string{"it comes from FORM_PASSWORD, FORM_PASSWORD_FILE, PASSWORD or the kit's password file, in this order"}, api.ExitNotAllowed
	case errors.Is(err, keystore.ErrExposed):
		return text, []string{"make a new key (form key new --force) if anyone may have read this one"}, api.ExitNotAllowed
	case errors.Is(err, keystore.ErrFormat):
		return text, []string{"restore the key from its words: form key import --force"}, api.ExitUsage
	case errors.Is(err, store.ErrLocked):
		return text, []string{"another form is working on the same packs: wait for it, or give this one its own XDG_DATA_HOME"}, api.ExitFailed
	case errors.Is(err, store.ErrCorrupt):
		return text, []string{"the bytes are not what their hash says: get them again from somewhere else"}, api.ExitFailed
	case errors.Is(err, store.ErrNotFound):
		return text, []string{"what is here: form pack ls, form base ls"}, api.ExitNotFound
	case errors.Is(err, store.ErrNoPeer):
		return text, []string{"nobody who can be reached has it: form peers, form node ls"}, api.ExitNotFound
	case errors.Is(err, stmt.ErrAuthority), errors.Is(err, stmt.ErrExpired):
		return text, nil, api.ExitNotAllowed
	case errors.Is(err, crdt.ErrInvalid), errors.Is(err, stmt.ErrTooLarge):
		return text, []string{"a name is a DNS label; env, labels and SSH keys share the 8 KiB and 64 keys of a signed statement"}, api.ExitUsage
	case errors.Is(err, crdt.ErrQuota):
		return text, []string{"delete what is not needed any more: form ls, form rm"}, api.ExitUsage
	case errors.Is(err, crdt.ErrNoSecret):
		return text, []string{"which there are: form secret ls INSTANCE"}, api.ExitNotFound
	case errors.Is(err, crdt.ErrNotFound):
		return text, []string{"it was deleted meanwhile: form ls"}, api.ExitNotFound
	case errors.Is(err, stmt.ErrTicket), errors.Is(err, stmt.ErrKey):
		return text, nil, api.ExitUsage
	case errors.Is(err, syscall.EPIPE):
		return "nobody reads the answer any more", nil, api.ExitFailed
	case errors.As(err, &path) && errors.Is(err, fs.ErrNotExist):
		return text, []string{"check the path"}, api.ExitNotFound
	case errors.As(err, &path) && errors.Is(err, fs.ErrPermission):
		return text, []string{"check the file's owner and mode"}, api.ExitNotAllowed
	case !a.running:
		return text, nil, api.ExitUsage
	}
	return text, nil, api.ExitFailed
}

// nextStep is the hint of an error that has none of its own.
func nextStep(code int) string {
	switch code {
	case api.ExitUsage:
		return "form COMMAND --help shows what it takes"
	case api.ExitNotFound:
		return "check the name: form ls, form pack ls, form node ls"
	case api.ExitNotAllowed:
		return "check whose it is, and who you are: form ls --all, form key show"
	}
	return "form doctor looks for what is wrong; --debug says more"
}

func problemHints(p *api.Problem) []string {
	if p.Hint != "" {
		return []string{p.Hint}
	}
	if p.Exit == api.ExitUnreachable {
		return []string{"form doctor looks for the cause"}
	}
	return nil
}

func refusedHints(r *p2p.RefusedError) []string {
	if !r.ByPeer {
		return nil
	}
	return []string{
		"a private swarm wants its ticket: --ticket form1…, FORM_TICKET, or form kit init --ticket form1…",
		"a node that holds the network's root key prints one: form net invite",
	}
}

// diagnose says why nobody answers, and what to do.
func (a *app) diagnose(u *swarm.UnreachableError) (text string, hints []string, code int) {
	text = u.Error()
	if u.Socket == "" {
		if len(u.Peers) > 0 {
			hints = append(hints, "is formd running there, and is its port open to this machine? (form doctor, over there)")
		} else {
			hints = append(hints, "form peers, form node ls: who is there")
		}
		return text, hints, api.ExitUnreachable
	}
	info, err := os.Stat(u.Socket)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		text += ": there is no such socket"
		hints = append(hints, "start a daemon: formd run (it prints a line that begins with `ready` and names its socket)")
	case errors.Is(err, fs.ErrPermission), strings.Contains(u.Err.Error(), "permission denied"):
		text += ": this user may not open it"
		return text, []string{"run as the user formd runs as, or join the group of " + filepath.Dir(u.Socket)}, api.ExitNotAllowed
	case err != nil:
		text += ": " + err.Error()
	case info.Mode()&fs.ModeSocket == 0:
		text += ": that is not a socket"
	case strings.Contains(u.Err.Error(), "refused"):
		text += ": the socket is there but nobody listens; formd has stopped or was killed"
		hints = append(hints, "start it again: formd run, or systemctl start formd")
	default:
		text += ": " + u.Err.Error()
		hints = append(hints, "is it overloaded or stopped? look at its log")
	}
	return text, append(hints,
		"another socket: --api unix:///PATH or FORM_API",
		"no daemon is needed when you name a peer: --peer /ip4/…/p2p/12D3Koo…"), api.ExitUnreachable
}
