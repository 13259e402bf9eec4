package guest

import "sync"

// keyring is who may log in: the users of the configuration and the owner's
// keys. The host sends the owner's list in the configuration and again whenever
// it changes, and the two are carried out by different goroutines: a list of its
// own always wins over the configuration's, which was there before it.
type keyring struct {
	write func(users []User, owner []string) error // called by one at a time

	mu         sync.Mutex
	users      []User
	owner      []string
	configured bool
	replaced   bool // owner is newer than the configuration's
}

// configure sets the users, and the owner's keys unless newer ones came first.
func (k *keyring) configure(cfg Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.users, k.configured = cfg.Users, true
	if !k.replaced {
		k.owner = cfg.SSHKeys
	}
	return k.write(k.users, k.owner)
}

// replace sets the owner's keys; they are written when the users are known.
func (k *keyring) replace(owner []string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.owner, k.replaced = owner, true
	if !k.configured {
		return nil
	}
	return k.write(k.users, k.owner)
}
