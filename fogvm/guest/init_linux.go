package guest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// meshHome is beside the root's own tree, as hostKeyPath is.
const meshHome = diskHome + "/mesh"

// Init is the main of form-guest as process 1. It boots the guest from the
// initramfs, serves the host and ends the machine; it does not return. mesh makes
// it a peer on the mesh, whose state is to be kept in that folder of the disk.
func Init(mesh func(dir string, log *slog.Logger) Mesh) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{
		// The kernel stamps its console; a second clock in the lines only confuses.
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	a := newAgent(log, mesh(meshHome, log))
	if err := boot(log); err != nil {
		log.Error("boot", "error", err)
		a.update(func(c *condition) { c.configErr = fmt.Errorf("guest could not boot: %w", err) })
	}
	log.Info("agent up", "uptime_ms", uptimeMillis())
	power, err := a.run(context.Background())
	if err != nil {
		log.Error("agent", "error", err)
	}
	if err := powerOff(power); err != nil {
		log.Error("power off", "error", err)
	}
	// Ending process 1 panics the kernel, which ends the machine too.
	os.Exit(1)
}

// boot takes the machine from the initramfs to a running root with network.
func boot(log *slog.Logger) error {
	if err := mountKernel(); err != nil {
		return err
	}
	if err := os.Setenv("PATH", defaultPath); err != nil {
		return err
	}
	// What systemd gives its services.
	limit := &unix.Rlimit{Cur: 1024, Max: 524288}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, limit); err != nil {
		log.Warn("raise file limit", "error", err)
	}
	modules := loadModules()
	found, err := waitDisks("/sys", 10*time.Second)
	if err != nil {
		return fmt.Errorf("%w (modules: %v)", err, modules)
	}
	if modules != nil {
		log.Warn("modules", "error", modules)
	}
	if err := mountRoot(found); err != nil {
		return err
	}
	if err := switchRoot(); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := mountSystem(); err != nil {
		return err
	}
	if err := configureNetwork(); err != nil {
		// Without network the agent still answers and can tell.
		log.Error("network", "error", err)
	}
	return nil
}
