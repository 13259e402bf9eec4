package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"

	"github.com/formthefog/formation/cmd/internal/api"
	"github.com/formthefog/formation/cmd/internal/config"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/store/whole"
)

// identity is who this node is and which network it belongs to. It lives in the
// data directory: node.key and root.key (PKCS #8, mode 0600) and network.json.
type identity struct {
	Key     ed25519.PrivateKey
	RootKey ed25519.PrivateKey // nil unless this node holds it
	Member  []byte             // raw statement that admits Key; nil in an open network
	Fresh   bool               // this start made the network
	First   bool               // this start is the node's first one in its network
	peers   []string           // --bootstrap

	membership
}

// membership is the content of network.json.
type membership struct {
	Name string   `json:"name"`
	Root stmt.Key `json:"root"`
	stmt.Settings
	Bootstrap  []string   `json:"bootstrap,omitempty"`
	Publishers []stmt.Key `json:"base_publishers,omitempty"`
	Operators  []stmt.Key `json:"operators,omitempty"` // whom the ticket named
	// InviteSeed and Invite are those of the ticket this node joined by: while
	// the invite lasts it may admit others by it.
	InviteSeed []byte `json:"invite_seed,omitempty"`
	Invite     []byte `json:"invite,omitempty"`
	Admission  []byte `json:"member,omitempty"`
}

func (m membership) network() stmt.NetworkID { return m.NetworkID(m.Name, m.Root) }
func (i *identity) self() stmt.Key           { return stmt.KeyOf(i.Key) }
func (i *identity) open() bool               { return i.Root.IsZero() }
func (i *identity) joined() bool             { return len(i.Invite) > 0 || i.RootKey == nil && !i.open() }

// privateName is the name of networks that nobody named. Their root key tells
// them apart.
const privateName = "private"

// lockData makes the data directory and takes it for this process alone.
func lockData(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, api.Problemf(api.ExitFailed, "another formd uses %s", dir).
			WithHint("give this one its own: --data DIR --api unix:///PATH")
	}
	return f, nil
}

// loadIdentity reads the identity of a data directory, or makes it as the
// configuration says.
func loadIdentity(c config.Config, now time.Time) (*identity, error) {
	id := &identity{peers: c.Bootstrap}
	var err error
	if id.Key, _, err = loadKey(filepath.Join(c.Data, "node.key"), true); err != nil {
		return nil, err
	}
	path := filepath.Join(c.Data, "network.json")
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		id.First = true
		err = id.begin(c, now)
	case err != nil:
		return nil, fmt.Errorf("network: %w", err)
	default:
		if err = json.Unmarshal(b, &id.membership); err != nil {
			return nil, fmt.Errorf("network: %s: %w", path, err)
		}
		err = id.resume(c, now)
	}
	if err != nil {
		return nil, err
	}
	id.Member = id.Admission
	b, err = json.MarshalIndent(id.membership, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	return id, whole.Write(path, append(b, '\n'), 0o600)
}

// begin chooses the network of a new node: a ticket's, an open one, or a
// private one of its own.
func (i *identity) begin(c config.Config, now time.Time) (err error) {
	switch {
	case c.Join != "":
		t, err := stmt.ParseTicket(c.Join)
		if err != nil {
			return api.Problemf(api.ExitUsage, "--join: %v", err).WithHint("print a new ticket: form net invite")
		}
		if err := (membership{Settings: t.Settings}).sameSettings(c, "the ticket"); err != nil {
			return err
		}
		return i.join(t, now)
	case c.Network != "":
		i.Name, i.Settings = c.Network, c.Settings()
		return nil
	}
	var fresh bool
	i.RootKey, fresh, err = loadKey(filepath.Join(c.Data, "root.key"), true)
	if err != nil {
		return err
	}
	i.Fresh, i.Name, i.Root, i.Settings = fresh, privateName, stmt.KeyOf(i.RootKey), c.Settings()
	i.Admission, err = stmt.SignMember(i.RootKey, i.network(), stmt.MemberBody{Key: i.self(), Role: stmt.RoleNode}, nil, 0, 0)
	return err
}

// join admits this node by a ticket.
func (i *identity) join(t stmt.Ticket, now time.Time) error {
	i.Name, i.Root, i.Bootstrap, i.Publishers = t.Name, t.Root, t.Bootstrap, t.BasePublishers
	i.InviteSeed, i.Invite, i.Operators, i.Settings = t.InviteSeed, t.Invite, t.Operators, t.Settings
	if i.open() {
		return nil
	}
	var err error
	if i.Admission, err = t.Join(i.self(), stmt.RoleNode, now); err != nil {
		return api.Problemf(api.ExitNotAllowed, "--join: %v", err).WithHint("print a new ticket: form net invite")
	}
	return nil
}

// sameSettings checks that a network which there is has the settings that were asked
// for; they are fixed at its birth.
func (m membership) sameSettings(c config.Config, who string) error {
	has := m.Full()
	for _, x := range []struct{ flag, has, asked string }{
		{"mesh-prefix", has.Prefix4.String(), c.MeshPrefix}, {"mesh-zone", has.Zone, c.MeshZone},
	} {
		if x.asked != "" && x.asked != x.has {
			return api.Problemf(api.ExitUsage, "--%s %s: %s says %s", x.flag, x.asked, who, x.has).
				WithHint("a network's prefix and zone are fixed when it is made: leave them out, or make another network with another --data")
		}
	}
	return nil
}

// resume checks that a known network is the one asked for, and renews what a
// ticket says.
func (i *identity) resume(c config.Config, now time.Time) error {
	other := func(asked string) error {
		return api.Problemf(api.ExitUsage, "%s belongs to network %q (%s), not to %s", c.Data, i.Name, i.network().Short(), asked).
			WithHint("a node belongs to one network: use another --data for another network")
	}
	if c.Join != "" {
		t, err := stmt.ParseTicket(c.Join)
		if err != nil {
			return api.Problemf(api.ExitUsage, "--join: %v", err)
		}
		if t.Network() != i.network() {
			return other(fmt.Sprintf("the ticket's %q (%s)", t.Name, t.Network().Short()))
		}
		if err := i.renew(t, now); err != nil {
			return err
		}
	}
	if err := i.sameSettings(c, fmt.Sprintf("network %q", i.Name)); err != nil {
		return err
	}
	if c.Network != "" && (c.Network != i.Name || !i.open()) {
		return other(fmt.Sprintf("the open network %q", c.Network))
	}
	key, _, err := loadKey(filepath.Join(c.Data, "root.key"), false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && stmt.KeyOf(key) == i.Root {
		i.RootKey = key
	}
	return err
}

// renew takes what a ticket to the node's own network says. Its invite, while it
// lasts, admits the node anew: peers that have not met it yet let it in by that
// one. An ended invite is no obstacle for who is a member already, and the root's
// own admission needs none.
func (i *identity) renew(t stmt.Ticket, now time.Time) error {
	if i.Admission == nil {
		return i.join(t, now)
	}
	old := i.Admission
	m, err := stmt.CheckMember(old, i.network(), i.Root)
	if err != nil {
		return fmt.Errorf("network: own admission: %w", err)
	}
	i.Bootstrap, i.Publishers = t.Bootstrap, t.BasePublishers
	if len(t.Operators) > 0 {
		i.Operators = t.Operators
	}
	if len(t.Invite) == 0 {
		return nil
	}
	i.InviteSeed, i.Invite = t.InviteSeed, t.Invite
	if m.Invite.IsZero() {
		return nil
	}
	if i.Admission, err = t.Join(i.self(), stmt.RoleNode, now); err != nil {
		i.Admission = old
	}
	return nil
}

// named is this node's word on those who run it, each by a key in text, so that
// they may take it out of the network; nil: nobody is, or anyone is a member.
func (i *identity) named(operators []string) ([]byte, error) {
	if len(operators) == 0 || i.open() {
		return nil, nil
	}
	var keys []stmt.Key
	for _, word := range operators {
		k, err := stmt.ParseKey(word)
		if err != nil {
			return nil, usage(err)
		}
		keys = append(keys, k)
	}
	if len(keys) > stmt.MaxOperators {
		return nil, api.Problemf(api.ExitUsage, "--operator: %d keys, at most %d", len(keys), stmt.MaxOperators)
	}
	return stmt.SignOperators(i.Key, i.network(), keys)
}

// vouched are the peers for which the ticket or the operator vouches.
func (i *identity) vouched() map[stmt.Key]bool {
	out := map[stmt.Key]bool{}
	for _, addr := range slices.Concat(i.Bootstrap, i.peers) {
		info, err := peer.AddrInfoFromString(addr)
		if err != nil {
			continue // the network part reports what it cannot dial
		}
		if key, err := stmt.KeyOfPeerID(string(info.ID)); err == nil {
			out[key] = true
		}
	}
	return out
}

// sign admits key to role with the root key or the invite this node holds.
// Without either it is a Problem with ExitNotAllowed.
func (i *identity) sign(key stmt.Key, role stmt.Role, now time.Time) ([]byte, error) {
	if i.RootKey != nil {
		return stmt.SignMember(i.RootKey, i.network(), stmt.MemberBody{Key: key, Role: role}, nil, 0, 0)
	}
	raw, err := i.ticket(nil).Join(key, role, now)
	if err != nil {
		return nil, api.Problemf(api.ExitNotAllowed, "this node cannot admit %s: %v", key, err).
			WithHint("ask a node that holds the network's root key")
	}
	return raw, nil
}

// ticket opens this node's network by the invite it holds.
func (i *identity) ticket(addrs []string) stmt.Ticket {
	t := stmt.Ticket{
		Name: i.Name, Root: i.Root, InviteSeed: i.InviteSeed, Invite: i.Invite,
		Bootstrap: addrs, BasePublishers: i.publishers(), Settings: i.Settings,
	}
	return t
}

// publishers are the keys whose base names this node trusts.
func (i *identity) publishers() []stmt.Key {
	out := slices.Clone(i.Publishers)
	for _, k := range []stmt.Key{i.self(), i.Root} {
		if !k.IsZero() && !slices.Contains(out, k) && len(out) < stmt.MaxBootstrap {
			out = append(out, k)
		}
	}
	return out
}

// loadKey reads a PKCS #8 PEM file; with create it makes one that is not there.
func loadKey(path string, create bool) (key ed25519.PrivateKey, fresh bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && create {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, false, fmt.Errorf("key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return nil, false, fmt.Errorf("key: %w", err)
		}
		return key, true, whole.Write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		return nil, false, fmt.Errorf("key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, false, fmt.Errorf("key: %s is no PEM file", path)
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, false, fmt.Errorf("key: %s: %w", path, err)
	}
	key, ok := any.(ed25519.PrivateKey)
	if !ok {
		return nil, false, fmt.Errorf("key: %s holds no Ed25519 key", path)
	}
	return key, false, nil
}

// newSeed is fresh randomness for an invite key.
func newSeed() []byte {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed) // never fails (crypto/rand)
	return seed
}

// loopbackRank is 1 for a loopback multiaddr, else 0.
func loopbackRank(addr string) int {
	if strings.HasPrefix(addr, "/ip4/127.") || strings.HasPrefix(addr, "/ip6/::1/") {
		return 1
	}
	return 0
}
