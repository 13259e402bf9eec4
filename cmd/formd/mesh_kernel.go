package main

import (
	"context"
	"errors"
	"net/netip"

	"github.com/formthefog/formation/wg/kernel"
)

// kernelStation is the name of the node's own device behind the port; no guest's
// has a space.
const kernelStation = "this machine"

// kernelDevice is WireGuard of the kernel's. It cannot share the socket with QUIC,
// so it is a station behind the port, as guests are.
func (d *formd) kernelDevice() (*hostDevice, error) {
	name, err := freeInterface()
	if err != nil {
		return nil, err
	}
	m := d.mesh
	// It has the port in a network namespace of its own: wg shows the one that peers
	// know.
	dev, err := kernel.OpenApart(kernel.Config{Name: name, Key: m.key, Port: int(m.socket.Port()), Mark: d.meshMark()})
	if err != nil {
		return nil, err
	}
	return &hostDevice{
		Device: dev, kind: "the kernel's WireGuard", name: name, own: dev.Own, ended: dev.Done(), deliver: dev.Deliver,
		serve: func(ctx context.Context) error {
			return dev.Run(ctx, func(b []byte, to netip.AddrPort) { m.carrier.Send(kernelStation, b, to) })
		},
		close: func() {
			if err := dev.Close(); err != nil {
				m.log.Warn("mesh: interface", "interface", name, "err", err)
			}
		},
	}, nil
}

// meshMark is by what this node knows an interface of its own.
func (d *formd) meshMark() string { return d.id.self().String() }

// sweepKernel removes what an earlier start left in the kernel, which was killed.
func (d *formd) sweepKernel() {
	names, err := kernel.Sweep(d.meshMark())
	for _, name := range names {
		d.log.Info("mesh: removed the interface of an earlier start", "interface", name)
	}
	if err != nil {
		d.log.Warn("mesh: an interface of an earlier start may be there", "err", err)
	}
}

// noKernel says whether err is of a kernel that lacks what a device of its own
// needs.
func noKernel(err error) bool {
	return errors.Is(err, kernel.ErrUnsupported) || errors.Is(err, kernel.ErrNoFilter)
}
