package fogvm

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/formthefog/formation/fogvm/guest"
)

// rung is one way to end a machine and how long to wait for its effect.
type rung struct {
	name string
	act  func() error
	wait time.Duration
}

// stopMachine is the ladder: the agent, the power button, SIGTERM, SIGKILL.
func (s *shim) stopMachine(m *machine, force bool) error {
	limit := s.spec.StopTimeout
	s.mu.Lock()
	agent := s.agent
	s.mu.Unlock()
	if s.fence.check() != nil {
		force = true // a guest that is paused does nothing for its end
	}
	var ladder []rung
	if !force && agent != nil {
		grace := guest.Power{GraceSeconds: max(1, int(limit.Seconds()/2))}
		ladder = append(ladder, rung{"agent", func() error { return agent.Power(grace) }, limit * 3 / 4})
	}
	if !force {
		press := func() error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			return m.qmp.execute(ctx, "system_powerdown")
		}
		// A guest without an agent has not got far enough to lose anything.
		ladder = append(ladder, rung{"power button", press, min(limit/4, 2*time.Second)})
	}
	ladder = append(ladder,
		rung{"SIGTERM", func() error { return m.signal(syscall.SIGTERM) }, 5 * time.Second},
		rung{"SIGKILL", func() error { return m.signal(syscall.SIGKILL) }, time.Hour})
	return s.climb(ladder, m.exited)
}

// climb tries each rung for its time, until the machine has exited. An act may
// depend on the guest, which need not answer: nothing waits for one, and those
// that hang end with the machine's channels.
func (s *shim) climb(ladder []rung, exited <-chan error) error {
	for _, r := range ladder {
		s.log.Info("stopping", "by", r.name, "wait", r.wait)
		go func() {
			if err := r.act(); err != nil {
				s.log.Warn("stopping", "by", r.name, "error", err)
			}
		}()
		select {
		case exit := <-exited:
			return exit
		case <-time.After(r.wait):
		}
	}
	return errors.New("QEMU survives SIGKILL")
}
