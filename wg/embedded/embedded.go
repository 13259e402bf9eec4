// Package embedded is WireGuard in this process: wireguard-go over a TUN
// interface of the kernel's, or over a network stack of its own that needs no
// rights at all.
//
// Guarantees: a [Device] is configured by differences and never loses the
// sessions of peers that stay; over a TUN it answers the same socket as every
// WireGuard device, so `wg show` and wgctrl see it; [Device.Close] returns when
// nothing of it runs any more.
//
// Not guaranteed: that datagrams arrive: that is the Bind's affair.
package embedded

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/formthefog/formation/wg"
)

// Device implements [wg.Device]. Its methods may be called by several goroutines.
type Device struct {
	dev  *device.Device
	name string
}

// Config is what a device is made of.
type Config struct {
	TUN  tun.Device // owned by the Device from now on, also when Open fails
	Bind conn.Bind  // how datagrams travel
	Key  wg.Key     // private
	Port int        // for the Bind; 0: any
	Log  *slog.Logger
}

// Open starts a device without peers.
func Open(cfg Config) (*Device, error) {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	name, err := cfg.TUN.Name()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wg: TUN device: %w", err), cfg.TUN.Close())
	}
	log := cfg.Log.With("device", name)
	d := &Device{name: name}
	d.dev = device.NewDevice(cfg.TUN, cfg.Bind, &device.Logger{
		Verbosef: device.DiscardLogf,
		// Unreachable peers are no errors of the device.
		Errorf: func(format string, args ...any) { log.Debug("wireguard: " + fmt.Sprintf(format, args...)) },
	})
	err = d.dev.IpcSet(fmt.Sprintf("private_key=%x\nlisten_port=%d\n", cfg.Key[:], cfg.Port))
	if err == nil {
		err = d.dev.Up()
	}
	if err != nil {
		d.dev.Close()
		return nil, fmt.Errorf("wg: start device %s: %w", name, err)
	}
	return d, nil
}

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// Configure implements [wg.Device].
func (d *Device) Configure(changes []wgtypes.PeerConfig) error {
	if err := d.dev.IpcSet(encode(changes)); err != nil {
		return fmt.Errorf("wg: configure %s: %w", d.name, err)
	}
	return nil
}

// Peers implements [wg.Device].
func (d *Device) Peers() ([]wg.Status, error) {
	text, err := d.dev.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("wg: read %s: %w", d.name, err)
	}
	peers, err := decode(text)
	if err != nil {
		return nil, fmt.Errorf("wg: read %s: %w", d.name, err)
	}
	return peers, nil
}

// SetKey changes the device's private key. Sessions end, and begin anew with the
// next datagram; a peer that does not know the new key yet is lost until it does.
func (d *Device) SetKey(key wg.Key) error {
	if err := d.dev.IpcSet(fmt.Sprintf("private_key=%x\n", key[:])); err != nil {
		return fmt.Errorf("wg: set key of %s: %w", d.name, err)
	}
	return nil
}

// Done is closed when the device has ended by itself, as when its TUN interface
// was deleted, or by Close.
func (d *Device) Done() <-chan struct{} { return d.dev.Wait() }

// Close ends the device, its TUN interface and its Bind.
func (d *Device) Close() { d.dev.Close() }
