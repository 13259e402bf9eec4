package fogvm

import (
	"context"
	"fmt"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

// QEMU pauses a VM whose write the host's disk has no room for, and the guest
// knows nothing of it. Nobody else will set it going again, so its shim does.

// resumeInterval is how often a paused machine is tried again.
const resumeInterval = 5 * time.Second

func (m *machine) onEvent(e qmp.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e.Event {
	case "SHUTDOWN":
		m.shutdown, _ = e.Data["reason"].(string)
	case "BLOCK_IO_ERROR": // comes before the STOP it causes
		m.ioError = fmt.Sprintf("cannot %v its %v on the host: %v", e.Data["operation"], e.Data["node-name"], e.Data["reason"])
	case "STOP":
		m.paused = "the VM is paused"
		if m.ioError != "" {
			m.paused += ": " + m.ioError
		}
		select {
		case m.pauses <- struct{}{}:
		default:
		}
	case "RESUME":
		m.paused, m.ioError, m.held = "", "", false
	}
}

// pauseReason is empty while the machine runs.
func (m *machine) pauseReason() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// keepRunning sets the machine going again whenever it is paused, until ctx
// ends. It tells why the machine is paused, and "" once it has run on for a
// whole interval: where there is still no room it stops again at once.
func (m *machine) keepRunning(ctx context.Context, every time.Duration, tell func(reason string)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	told := false
	for {
		due := false
		select {
		case <-ctx.Done():
			return
		case <-m.pauses:
		case <-tick.C:
			due = true
		}
		reason := m.pauseReason()
		may := m.may() == nil
		if reason != "" && !may {
			reason = pausedReason
		}
		switch {
		case reason != "" && due && may:
			if err := m.resume(ctx, every); err != nil {
				reason += "; " + err.Error()
			}
			fallthrough
		case reason != "":
			tell(reason)
			told = true
		case due && told:
			tell("")
			told = false
		}
	}
}

func (m *machine) resume(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return m.qmp.executeIf(ctx, "cont", m.may)
}

// showPause shows why the machine is paused. How it does when it is not is the
// word of its agent, which speaks within guest.StatusInterval; before there is
// one, it boots.
func (s *shim) showPause(reason string) {
	if reason != "" {
		s.log.Warn("paused", "reason", reason)
	}
	s.update(func(st *Status) {
		switch {
		case st.Phase == Stopping:
		case reason != "":
			st.Phase, st.Ready, st.Reason = Unhealthy, false, reason
		case st.AgentAt.IsZero():
			st.Phase, st.Reason = Launching, ""
		}
	})
}
