// Package guest is what runs inside a VM and how the host talks to it.
//
// The protocol half (this file, frame.go, wire.go, exec.go, mesh.go, host.go) builds everywhere; the
// agent half (Linux only) is process 1 of every guest.
//
// Guarantees: every frame and message is bounded before it is read; a Config
// is applied as a whole or the agent reports why not; the agent reaps every
// orphan; entrypoint output never blocks the entrypoint for longer than the
// host takes to read a bounded buffer; what overflows is dropped and counted.
//
// Non-guarantees: the host is trusted by the guest (it owns its memory and
// disk), but for who its peers on the mesh are (package mesh); exec streams are not resumable; log output that the guest produced
// while no host listened is kept only up to LogBufferBytes.
package guest

import (
	"fmt"
	"time"
)

// Limits of the host↔guest protocol. Both ends enforce them.
const (
	// Version of the protocol spoken after the preamble.
	Version = 1
	// PortName is the virtio-serial port of the control channel.
	PortName = "org.formation.agent"
	// MaxConfigBytes bounds one encoded Config and any control message.
	MaxConfigBytes = 1 << 20
	// MaxFrame bounds the payload of one exec or log frame.
	MaxFrame = 32 << 10
	// MaxLowers is the number of squashfs layers a guest can stack.
	MaxLowers = 64
	// LogBufferBytes of entrypoint output are kept in the guest for the host.
	LogBufferBytes = 256 << 10
	// StatusInterval is the longest silence of a live agent.
	StatusInterval = 10 * time.Second
	// ModuleList is the path in the base's modules cpio of the text file that
	// names one .ko path per line in load order.
	ModuleList = "/lib/modules/load"
)

// Addresses of the user-mode network, fixed for every guest: each shim has a
// network of its own.
const (
	Address = "192.168.127.2"
	Gateway = "192.168.127.1"
	Subnet  = "192.168.127.0/24"
)

// DiskSerial is the virtio-blk serial of the writable disk.
const DiskSerial = "disk"

// LayerSerial is the virtio-blk serial of layer i, 0 the topmost.
func LayerSerial(i int) string { return fmt.Sprintf("layer%02d", i) }
