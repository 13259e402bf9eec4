package guest

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"time"

	"github.com/hashicorp/yamux"
)

// Info is the agent's hello: what booted. It is untrusted (the guest's word).
type Info struct {
	Version int    `json:"version"`
	Kernel  string `json:"kernel"`
	CPUs    int    `json:"cpus"`
	// UptimeMillis is the guest's uptime when the agent was up.
	UptimeMillis int64 `json:"uptime_ms"`
}

// streamKind is what the host opens a stream for; the first message on it.
type streamKind string

const (
	streamControl streamKind = "control"
	streamExec    streamKind = "exec"
	streamLogs    streamKind = "logs"
	streamMesh    streamKind = "mesh" // News, each round of it answered by a MeshReport
)

type openStream struct {
	Kind streamKind   `json:"kind"`
	Exec *ExecRequest `json:"exec,omitempty"`
}

// toGuest is a control message from the host; one field is set.
type toGuest struct {
	Config    *Config   `json:"config,omitempty"`
	Authorize *[]string `json:"authorize,omitempty"` // replaces Config.SSHKeys
	Secrets   *[]Secret `json:"secrets,omitempty"`   // the whole set; first, before Config
	Time      int64     `json:"time,omitempty"`      // unix nanoseconds
	Power     *Power    `json:"power,omitempty"`
	// Locate says where peers are, all that is known; hints, that nothing proves.
	Locate *[]Location `json:"locate,omitempty"`
}

// toHost is a control message from the guest; one field is set.
type toHost struct {
	Hello  *Info   `json:"hello,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Power asks the guest to end this run.
type Power struct {
	Reboot bool `json:"reboot,omitempty"`
	// GraceSeconds the entrypoint has between SIGTERM and SIGKILL; 0 means 10.
	GraceSeconds int `json:"grace_s,omitempty"`
}

// preamble opens the channel in both directions before yamux starts, so that
// an old or foreign agent is told apart from a broken stream.
func preamble() []byte { return append([]byte("formation-guest"), Version) }

func readPreamble(r io.Reader) error {
	got := make([]byte, len(preamble()))
	if _, err := io.ReadFull(r, got); err != nil {
		return fmt.Errorf("read agent preamble: %w", err)
	}
	if want := preamble(); !bytes.Equal(got, want) {
		if bytes.HasPrefix(got, want[:len(want)-1]) {
			return fmt.Errorf("agent speaks protocol %d, this side %d", got[len(got)-1], Version)
		}
		return fmt.Errorf("no agent on the control channel (got %q)", got)
	}
	return nil
}

// muxConfig: no keepalive, because a paused or starved VM is not a dead one;
// the agent's own status messages show life. A write may wait long for an
// emulated guest that is busy booting.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 2 * time.Minute
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = time.Minute
	c.AcceptBacklog = 64
	c.LogOutput = nil
	c.Logger = log.New(io.Discard, "", 0)
	return c
}

// hostMuxConfig is the host's: it waits for a guest that takes nothing as long
// as it believes one that says nothing.
func hostMuxConfig() *yamux.Config {
	c := muxConfig()
	c.ConnectionWriteTimeout = 3 * StatusInterval
	return c
}
