package stmt

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Limits of a [Ticket].
const (
	// MaxTicket is the longest ticket in characters.
	MaxTicket = 8 << 10
	// MaxBootstrap is the largest number of bootstrap addresses and of base
	// publishers in a ticket.
	MaxBootstrap = 16
	// MaxNetworkName is the longest network name in bytes.
	MaxNetworkName  = 64
	maxAddress      = 256
	ticketPrefix    = "form1"
	ticketSumLength = 4
)

// ErrTicket is wrapped by every error of [ParseTicket].
var ErrTicket = errors.New("stmt: invalid ticket")

// Ticket is all that is needed to join a network: its name and root, where to
// find it, and an invite. Whoever holds a ticket with an InviteSeed can join
// until the invite expires: treat it as a password.
type Ticket struct {
	Name           string   `cbor:"name"`
	Root           Key      `cbor:"root,omitzero"`       // zero: an open network
	Bootstrap      []string `cbor:"boot,omitempty"`      // multiaddrs with /p2p/…
	InviteSeed     []byte   `cbor:"seed,omitempty"`      // Ed25519 seed of the invite key
	Invite         []byte   `cbor:"invite,omitempty"`    // the root's raw invite statement
	BasePublishers []Key    `cbor:"publish,omitempty"`   // keys whose base names to trust
	Operators      []Key    `cbor:"operators,omitempty"` // whom a node that joins by it names as its own; at most MaxOperators
	Settings                // of the network
}

// Network returns the ID of the network the ticket opens.
func (t Ticket) Network() NetworkID { return t.NetworkID(t.Name, t.Root) }

// Join returns the member statement that admits key to role by the ticket's
// invite. It needs nobody online. Errors wrap ErrTicket when the ticket holds no
// usable invite for role, or ErrExpired.
func (t Ticket) Join(key Key, role Role, now time.Time) ([]byte, error) {
	if len(t.InviteSeed) != ed25519.SeedSize || len(t.Invite) == 0 {
		return nil, fmt.Errorf("%w: it holds no invite", ErrTicket)
	}
	raw, err := SignMember(ed25519.NewKeyFromSeed(t.InviteSeed), t.Network(), MemberBody{Key: key, Role: role}, t.Invite, 0, 0)
	if err != nil {
		return nil, err
	}
	m, err := CheckMember(raw, t.Network(), t.Root)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTicket, err)
	}
	if m.Expires <= now.Unix() {
		return nil, fmt.Errorf("%w: the invite ended at %s", ErrExpired, time.Unix(m.Expires, 0).UTC().Format(time.RFC3339))
	}
	return raw, nil
}

// String returns the ticket's text: "form1", then unpadded URL base64 of its
// canonical bytes and the first four bytes of their SHA-256. It panics when a
// field is not encodable, which only invalid UTF-8 can cause.
func (t Ticket) String() string {
	b := must(Marshal(t))
	sum := sha256.Sum256(b)
	return ticketPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:ticketSumLength]...))
}

// ParseTicket reads what [Ticket.String] wrote, ignoring white space around it
// and line breaks within. The invite, when there is one, must be the root's and
// fit the seed. Errors wrap ErrTicket.
func ParseTicket(s string) (Ticket, error) {
	var t Ticket
	if len(s) > MaxTicket {
		return t, fmt.Errorf("%w: %d characters", ErrTicket, len(s))
	}
	s = strings.Join(strings.Fields(s), "")
	text, ok := strings.CutPrefix(s, ticketPrefix)
	if !ok {
		return t, fmt.Errorf("%w: it does not begin with %q", ErrTicket, ticketPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < ticketSumLength {
		return t, fmt.Errorf("%w: not URL base64", ErrTicket)
	}
	b, sum := b[:len(b)-ticketSumLength], b[len(b)-ticketSumLength:]
	if h := sha256.Sum256(b); string(h[:ticketSumLength]) != string(sum) {
		return t, fmt.Errorf("%w: wrong checksum (a character is missing or mistyped)", ErrTicket)
	}
	if len(b) == 0 || b[0]>>5 != majorMap {
		return t, fmt.Errorf("%w: not a map", ErrTicket)
	}
	if err := Unmarshal(b, &t); err != nil {
		return t, fmt.Errorf("%w: %w", ErrTicket, err)
	}
	return t, t.check()
}

func (t Ticket) check() error {
	if t.Name == "" || len(t.Name) > MaxNetworkName || len(t.Bootstrap) > MaxBootstrap || len(t.BasePublishers) > MaxBootstrap ||
		len(t.Operators) > MaxOperators {
		return fmt.Errorf("%w: a field is missing or too long", ErrTicket)
	}
	if err := t.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrTicket, err)
	}
	for _, a := range t.Bootstrap {
		if len(a) > maxAddress {
			return fmt.Errorf("%w: address of %d bytes", ErrTicket, len(a))
		}
	}
	if len(t.InviteSeed) == 0 && len(t.Invite) == 0 {
		return nil
	}
	if len(t.InviteSeed) != ed25519.SeedSize {
		return fmt.Errorf("%w: invite seed of %d bytes", ErrTicket, len(t.InviteSeed))
	}
	inv := &Statement{
		Network: t.Network(), Via: t.Invite, Author: KeyOf(ed25519.NewKeyFromSeed(t.InviteSeed)),
	}
	if _, err := checkInvite(inv, t.Root); err != nil {
		return fmt.Errorf("%w: %w", ErrTicket, err)
	}
	return nil
}
