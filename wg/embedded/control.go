package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
)

// ControlDir is where wg and wgctrl look for the sockets of devices, by name. It
// is one for a whole mount namespace: devices of one name in two network
// namespaces are in each other's way.
const ControlDir = "/var/run/wireguard"

// maxControls is how many clients the control socket serves at once.
const maxControls = 16

// Serve answers wg and wgctrl on the socket of the device's name until ctx or
// the device ends. It needs root.
func (d *Device) Serve(ctx context.Context) error {
	l, err := listenControl(d.name)
	if err != nil {
		return fmt.Errorf("wg: control socket of %s: %w", d.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.dev.Wait():
		case <-ctx.Done():
		}
		l.Close() // whatever it says, Accept below ends
	}()
	var clients sync.WaitGroup
	defer clients.Wait()
	slots := make(chan struct{}, maxControls)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wg: control socket of %s: %w", d.name, err)
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close()
			continue
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		clients.Go(func() {
			defer func() { <-slots }()
			defer stop()
			d.dev.IpcHandle(c) // closes c
		})
	}
}

// listenControl makes the socket, instead of one that nobody answers any more.
func listenControl(name string) (net.Listener, error) {
	if err := os.MkdirAll(ControlDir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(ControlDir, name+".sock")
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s is in use by another device of that name", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}
