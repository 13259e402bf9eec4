package fogvm

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/fogvm/guest"
)

// hasSecrets: the secrets of the guest were given, or it has none to wait for.
func (s *shim) hasSecrets() bool {
	if s.given == nil {
		return true
	}
	select {
	case <-s.given:
		return true
	default:
		return false
	}
}

// awaitSecrets waits until the guest may be configured; false when ctx ended.
// What bounds it is the patience with a boot.
func (s *shim) awaitSecrets(ctx context.Context) bool {
	if s.hasSecrets() {
		return true
	}
	s.update(func(st *Status) { st.Reason = "waits for its secrets" })
	select {
	case <-s.given:
		return true
	case <-ctx.Done():
		return false
	}
}

// takeSecrets keeps the secrets, in memory, for this boot and the next ones.
func (s *shim) takeSecrets(secrets []guest.Secret) error {
	s.mu.Lock()
	s.secrets = secrets
	if !s.hasSecrets() {
		close(s.given)
	}
	s.mu.Unlock()
	agent, err := s.connected()
	if err != nil {
		return nil // they are given to the agent when it comes up
	}
	return s.sendSecrets(agent)
}

// sendSecrets gives the agent what there is now: whoever sends last sends the
// latest.
func (s *shim) sendSecrets(agent *guest.Conn) error {
	s.giving.Lock()
	defer s.giving.Unlock()
	s.mu.Lock()
	secrets := s.secrets
	s.mu.Unlock()
	return agent.SetSecrets(secrets)
}

// NoCore keeps the memory of this process and its children, which holds secrets,
// out of core files.
func NoCore() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", os.NewSyscallError("setrlimit", err))
	}
	return nil
}
