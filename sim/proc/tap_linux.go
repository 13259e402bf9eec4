package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// openTap makes the interface eth0 of a network namespace. What that sends is read
// from the file, a frame at a time, and what is written to it arrives. The interface
// ends with the file.
func openTap(ns string) (tap *os.File, err error) {
	err = within(ns, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		ifr, err := unix.NewIfreq("eth0")
		if err == nil {
			ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make a tap: %w", err), unix.Close(fd))
		}
		tap = os.NewFile(uintptr(fd), "eth0 of "+ns)
		return nil
	})
	return tap, err
}

// within runs f on a thread that is in a network namespace. The thread ends with it, so
// that it is nobody else's.
func within(ns string, f func() error) error {
	there, err := os.Open(filepath.Join(namespaces, ns))
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }() // only a name
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network namespace %s: %w", ns, err)
			return
		}
		done <- f()
	}()
	return <-done
}
