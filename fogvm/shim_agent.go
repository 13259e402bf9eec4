package fogvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// talk connects to the guest's agent, configures it and follows its reports.
func (s *shim) talk(ctx context.Context, channel net.Conn) {
	conn, err := guest.Connect(ctx, channel)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("agent", "error", err)
		}
		return
	}
	s.mu.Lock()
	s.agent = conn
	cfg := s.spec.VM.Guest
	cfg.SSHKeys = s.keys
	s.mu.Unlock()
	silence := time.AfterFunc(3*guest.StatusInterval, s.agentSilent)
	defer silence.Stop()
	if err := s.follow(ctx, conn, cfg, silence); err != nil {
		s.log.Warn("agent channel ended", "error", err)
	}
	s.mu.Lock()
	s.agent = nil
	s.mu.Unlock()
	<-ctx.Done() // a guest that broke its channel may run on, and is silent
}

// follow configures the guest and passes its reports on until the channel,
// which it closes, or ctx ends.
func (s *shim) follow(ctx context.Context, conn *guest.Conn, cfg guest.Config, silence *time.Timer) error {
	var parts sync.WaitGroup
	defer parts.Wait()
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.update(func(st *Status) { st.AgentAt = time.Now() })
	s.log.Info("agent up", "kernel", conn.Info().Kernel, "guest_uptime_ms", conn.Info().UptimeMillis)
	if !s.awaitSecrets(ctx) {
		return nil
	}
	if err := errors.Join(conn.SetTime(time.Now()), s.sendSecrets(conn), conn.Configure(cfg)); err != nil {
		return fmt.Errorf("configure guest: %w", err)
	}
	if where := s.mesh.located(); len(where) > 0 {
		if err := conn.Locate(where); err != nil {
			return err
		}
	}
	parts.Go(func() { s.copyLogs(ctx, conn) })
	parts.Go(func() { s.minuteByMinute(ctx, conn) })
	return conn.Run(ctx, func(g guest.Status, refused error) {
		silence.Reset(3 * guest.StatusInterval)
		if refused != nil {
			s.log.Warn("the guest's report is not believed", "error", refused)
		}
		s.onGuest(g)
	})
}

// agentSilent marks a guest whose agent has stopped reporting: hung, or starved
// of CPU. Its next report puts it right.
func (s *shim) agentSilent() {
	s.update(func(st *Status) {
		if st.Phase == Running {
			st.Phase, st.Ready, st.Reason = Unhealthy, false, fmt.Sprintf("the guest's agent has been silent for %s", 3*guest.StatusInterval)
		}
	})
}

func (s *shim) copyLogs(ctx context.Context, conn *guest.Conn) {
	stream, err := conn.Logs()
	if err != nil {
		s.log.Warn("logs", "error", err)
		return
	}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	if _, err := io.Copy(s.app, stream); err != nil && ctx.Err() == nil {
		s.log.Warn("logs", "error", err)
	}
}

// minuteByMinute keeps the guest's clock: it may have slept with the host.
func (s *shim) minuteByMinute(ctx context.Context, conn *guest.Conn) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := conn.SetTime(time.Now()); err != nil {
				if ctx.Err() == nil {
					s.log.Warn("the guest's clock is not kept any more", "error", err)
				}
				return
			}
		}
	}
}

// onGuest turns the agent's report into the VM's status.
func (s *shim) onGuest(g guest.Status) {
	s.update(func(st *Status) {
		st.SSHHostKey, st.MeshKey, st.MeshProblem, st.Restarts = g.SSHHostKey, g.MeshKey, g.MeshProblem, g.Restarts
		if st.Phase == Stopping {
			return
		}
		st.Reason, st.Ready = g.Reason, g.Phase == guest.PhaseReady
		switch g.Phase {
		case guest.PhaseStarting:
			st.Phase = Launching
		case guest.PhaseReady:
			st.Phase = Running
			if st.ReadyAt.IsZero() {
				st.ReadyAt = time.Now()
			}
		case guest.PhaseUnhealthy:
			st.Phase = Unhealthy
		case guest.PhaseFailed:
			st.Phase = Failed
		case guest.PhaseStopping:
			st.Phase = Stopping
		}
	})
}
