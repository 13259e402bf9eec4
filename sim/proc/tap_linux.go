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

// within runs f on a thread that is in a network namespace.
func within(ns string, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = home.Close() }() // only a name
	there, err := os.Open(filepath.Join(namespaces, ns))
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() { _ = there.Close() }() // only a name
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the network namespace %s: %w", ns, err)
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked, so that it ends with its goroutine and is nobody else's.
		return errors.Join(err, fmt.Errorf("leave the network namespace %s: %w", ns, back))
	}
	runtime.UnlockOSThread()
	return err
}
