package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt/stmt"
)

var errSignal = errors.New("signal")

// watchSignals calls first for the first SIGTERM or SIGINT; a second one exits
// at once. The result ends the watch.
func watchSignals(first func(os.Signal)) (end func()) {
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case s := <-ch:
				if n > 0 {
					os.Exit(api.ExitFailed)
				}
				first(s)
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
	}
}

// announce waits until the node is up and says so.
func (d *formd) announce(ctx context.Context) error {
	select {
	case <-d.node.Ready():
	case <-ctx.Done():
		return nil
	}
	if d.id.Fresh {
		t, err := d.id.invite(d.node.Addrs(), stmt.InviteBody{
			Roles: []stmt.Role{stmt.RoleNode, stmt.RoleOwner}, Expires: d.now().Add(defaultInvite).Unix(),
		})
		if err != nil {
			return fmt.Errorf("ticket: %w", err)
		}
		fmt.Fprintf(d.stderr, "formd: made a private network; its root key is in %s\n", d.path("root.key"))
		fmt.Fprintf(d.stderr, "formd: others join until %s by: formd run --join TICKET\nticket: %s\n", t.Expires.Format(time.DateOnly), t.Ticket)
	}
	if _, err := fmt.Fprintf(d.stdout, "ready peer=%s api=%s listen=%s\n",
		d.id.self(), d.cfg.Socket(), strings.Join(d.node.Addrs(), ",")); err != nil {
		return fmt.Errorf("ready line: %w", err)
	}
	d.notify(daemon.SdNotifyReady)
	return nil
}

func (d *formd) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		d.log.Warn("notify systemd", "err", err)
	}
}
