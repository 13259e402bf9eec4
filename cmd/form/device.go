package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/formthefog/formation/cmd/form/internal/cli"
	"github.com/formthefog/formation/cmd/form/internal/swarm"
	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/stmt"
)

// device is one in an answer.
type device struct {
	Key     stmt.Key `json:"key"`
	Name    string   `json:"name"`
	MeshKey string   `json:"mesh_key,omitempty"` // hex
	This    bool     `json:"this"`               // the machine that is asked
}

func newDeviceAdd(a *app) *cobra.Command {
	var name, mesh string
	c := &cobra.Command{
		Use: "add KEY", Short: "let a key speak for you, until you remove it",
		Long: `Lists KEY (a peer ID or public key, as form key show prints it there) as a
device of yours, or gives a listed one another name. With that key's file and
your peer ID, FORM_KEY_FILE=… FORM_OWNER=…, form connects for you: it sees what
you see. It changes only instances that name it: form manage delegate.`,
		Args: argsBetween(1, 1, "one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			d := crdt.Device{Name: name}
			var err error
			if d.Key, err = deviceKey(args[0]); err != nil {
				return err
			}
			if mesh != "" {
				if d.MeshKey, err = deviceKey(mesh); err != nil {
					return err
				}
			}
			return a.changeDevice(cmd.Context(), d.Key, "listed", func(au *crdt.Author) ([][]byte, error) { return au.SetDevice(d) })
		},
	}
	c.Flags().StringVar(&name, "name", "", "a name for people (a DNS label)")
	c.Flags().StringVar(&mesh, "mesh", "", "the device's WireGuard public key")
	return c
}

func newDeviceRm(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm KEY", Aliases: []string{"remove"}, Short: "end for ever that a key speaks for you",
		Long: `Removes a device. Its connections are cut, and it cannot be listed again: a device
that is found needs a new key. What it may change as a delegate of instances is
another matter: form manage delegate --remove.`,
		Args: argsBetween(1, 1, "one KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := deviceKey(args[0])
			if err != nil {
				return err
			}
			return a.changeDevice(cmd.Context(), key, "removed", func(au *crdt.Author) ([][]byte, error) { return au.RemoveDevice(key) })
		},
	}
}

func newDeviceLs(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "list the keys that speak for you", Args: noArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withAuthor(cmd.Context(), func(_ *swarm.Conn, au *crdt.Author) error {
				list := []device{}
				self, err := a.deviceKeys()
				if err != nil {
					return err
				}
				for _, d := range au.Devices() {
					if d.Node {
						continue
					}
					v := device{Key: d.Key, Name: d.Name, This: slices.Contains(self, d.Key)}
					if !d.MeshKey.IsZero() {
						v.MeshKey = fmt.Sprintf("%x", d.MeshKey[:])
					}
					list = append(list, v)
				}
				return a.p.Answer(list, func(w io.Writer) {
					var rows [][]string
					for _, d := range list {
						this := ""
						if d.This {
							this = "this machine"
						}
						rows = append(rows, []string{d.Key.String(), d.Name, d.MeshKey, this})
					}
					cli.Table(w, []string{"DEVICE", "NAME", "MESH KEY", ""}, rows)
				})
			})
		},
	}
}

func deviceKey(text string) (stmt.Key, error) {
	k, err := stmt.ParseKey(text)
	if err != nil {
		return k, cli.Errorf(api.ExitUsage, "%w", err).Hint("the device's own: form key show, there")
	}
	return k, nil
}

// withAuthor runs f with the owner's pen on a connection.
func (a *app) withAuthor(ctx context.Context, f func(*swarm.Conn, *crdt.Author) error) error {
	return a.withSwarm(ctx, func(c *swarm.Conn) error {
		au, err := a.author(ctx, c)
		if err != nil {
			return err
		}
		return f(c, au)
	})
}

// changeDevice signs and hands in a change of the owner's devices.
func (a *app) changeDevice(ctx context.Context, key stmt.Key, done string, sign func(*crdt.Author) ([][]byte, error)) error {
	return a.withAuthor(ctx, func(c *swarm.Conn, au *crdt.Author) error {
		raws, err := sign(au)
		switch {
		case errors.Is(err, crdt.ErrNotFound):
			return cli.Errorf(api.ExitNotFound, "%w", err).Hint("which there are: form key device ls")
		case errors.Is(err, crdt.ErrInvalid):
			return cli.Errorf(api.ExitUsage, "%w", err)
		case err != nil:
			return cannotSign("change a device", "", err)
		}
		if _, err := c.API().Submit(ctx, raws); err != nil {
			return err
		}
		v := struct {
			Key  stmt.Key `json:"key"`
			Done string   `json:"done"`
		}{key, done}
		return a.p.Answer(v, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", key, done) })
	})
}

func newDelegate(a *app) *cobra.Command {
	remove := false
	c := &cobra.Command{
		Use: "delegate INSTANCE KEY", Short: "let another key change an instance",
		Long: `Names KEY a delegate: it may scale, stop, start, restart and update INSTANCE, as
you may. It cannot delete it, nor read or set its secrets, nor name delegates, nor
change its partition contract and voters. This holds until --remove. A delegate
that is a device of yours (form key device add) connects with FORM_KEY_FILE=…
FORM_OWNER=….`,
		Args: argsBetween(2, 2, "an INSTANCE and a KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := deviceKey(args[1])
			if err != nil {
				return err
			}
			done := "delegated"
			if remove {
				done = "delegate removed"
			}
			return a.alter(cmd.Context(), args[0], done, func(s *crdt.Spec) {
				s.Delegates = slices.DeleteFunc(s.Delegates, func(k stmt.Key) bool { return k == key })
				if !remove {
					s.Delegates = append(s.Delegates, key)
				}
			})
		},
	}
	c.Flags().BoolVar(&remove, "remove", false, "take it back")
	return c
}
