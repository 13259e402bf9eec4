package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/kit"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/keystore"
)

// States of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn"
	checkFail = "fail"
)

func newDoctor(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "look for what is wrong, and say how to put it right",
		Long: `Checks this machine's kit, and then has the node check itself. It exits 1 when a
check fails; a warning is none.`,
		Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.runDoctor(cmd.Context()) },
	}
}

func (a *app) runDoctor(ctx context.Context) error {
	checks := []api.Check{a.checkKit(), a.checkKey(), checkSSH()}
	dctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	node, err := a.checkNode(dctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	checks = append(checks, node...)
	if err != nil {
		text, hints, _ := a.explain(err)
		c := api.Check{Name: "swarm", State: checkFail, Detail: text}
		if len(hints) > 0 {
			c.Fix = hints[0]
		}
		checks = append(checks, c)
	}
	err = a.p.Answer(checks, func(w io.Writer) {
		for _, c := range checks {
			fmt.Fprintf(w, "%-5s %-14s %s\n", c.State, c.Name, c.Detail)
			if c.Fix != "" && c.State != checkOK {
				fmt.Fprintf(w, "%-5s %-14s fix: %s\n", "", "", c.Fix)
			}
		}
	})
	if err != nil {
		return err
	}
	failed := 0
	for _, c := range checks {
		if c.State == checkFail {
			failed++
		}
	}
	if failed > 0 {
		return cli.Errorf(api.ExitFailed, "%s failed", count(failed, "check")).Hint("do what its fix says, the first one first")
	}
	return nil
}

func (a *app) checkKit() api.Check {
	c := api.Check{Name: "kit", State: checkOK, Detail: a.dir().File()}
	k, err := kit.Load(a.dir())
	switch {
	case errors.Is(err, kit.ErrNone):
		c.State, c.Detail, c.Fix = checkWarn, "no kit yet", "form kit init"
	case err != nil:
		c.State, c.Detail, c.Fix = checkFail, err.Error(), "correct the file, or form kit init --force"
	default:
		if _, err := a.ticket(k); err != nil {
			c.State, c.Detail, c.Fix = checkFail, err.Error(), "form kit init --ticket form1…"
		}
	}
	return c
}

// checkKey tries to open the key, with what is given only.
func (a *app) checkKey() api.Check {
	c := api.Check{Name: "key", State: checkOK}
	path, k, err := a.keyPath()
	if err != nil {
		return api.Check{Name: "key", State: checkWarn, Detail: "not looked at: the kit cannot be read"}
	}
	key, err := keystore.Load(path, func() ([]byte, error) {
		p, err := a.givenPassword(k.PasswordPath(a.dir()))
		if err == nil && p == "" {
			err = errNoPassword
		}
		return []byte(p), err
	})
	switch {
	case err == nil:
		a.opened = key
		owner, err := a.owner()
		if err != nil {
			return api.Check{Name: "key", State: checkFail, Detail: err.Error()}
		}
		c.Detail = owner.String()
	case errors.Is(err, errNoPassword):
		c.Detail = path + ", encrypted; its password is not given, so it was not opened"
	default:
		text, hints, _ := a.explain(err)
		c.State, c.Detail, c.Fix = checkFail, text, "form kit init"
		if len(hints) > 0 {
			c.Fix = hints[0]
		}
	}
	return c
}

var errNoPassword = errors.New("no password given")

func checkSSH() api.Check {
	path, err := exec.LookPath("ssh")
	if err != nil {
		return api.Check{Name: "ssh", State: checkWarn, Detail: "there is no ssh here; form ssh needs one", Fix: "apt install openssh-client"}
	}
	return api.Check{Name: "ssh", State: checkOK, Detail: path}
}

func (a *app) checkNode(ctx context.Context) (checks []api.Check, err error) {
	c, err := a.connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer closing(c, &err)
	self, err := c.API().Node(ctx)
	if err != nil {
		return nil, err
	}
	way := "by libp2p"
	if c.Local() {
		way = "by " + self.API
	}
	checks = append(checks, api.Check{Name: "swarm", State: checkOK, Detail: fmt.Sprintf("node %s of network %s answers %s", self.Node.Key, self.Network.Name, way)})
	node, err := c.API().Doctor(ctx)
	return append(checks, node...), err
}
