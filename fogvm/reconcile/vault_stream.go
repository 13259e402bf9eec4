package reconcile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/seal"
	"github.com/formthefog/formation/crdt/stmt"
)

// ProtoSecret is the bare protocol name by which a node that keeps a slot gets
// the instance's secrets from one that runs it: a secretRequest, then frames of
// secretAnswer up to one that ends.
const ProtoSecret = "secret/1"

// Bounds of the protocol.
const (
	maxSecretRequest = 8 << 10
	maxSecretAnswer  = seal.MaxFrame + 512
	servingSecrets   = 16            // questions that are answered at once
	servingOne       = 2             // of them of one peer
	secretRate       = time.Second   // between two questions of a peer, in the long run
	secretBurst      = 64            // at once: as many slots as a node may take over
	maxAskers        = 1024          // peers whose rate is remembered
	answerTime       = askTimeout    // for one question, all of it
	refusedText      = 256           // bytes of a refusal
	noRights         = "not for you" // no more is told to who may not ask
	malformed        = "not understood"
)

type secretRequest struct {
	Instance crdt.DocID `cbor:"i"`
	Names    []string   `cbor:"n"`
}

// secretAnswer is one value, or the end, with the reason for a refusal.
type secretAnswer struct {
	Name    string `cbor:"n,omitempty"`
	Frame   []byte `cbor:"f,omitempty"`
	End     bool   `cbor:"e,omitempty"`
	Refused string `cbor:"r,omitempty"`
}

// Errors of a question.
var (
	errRefused = errors.New("refused")
	errAnswer  = errors.New("malformed answer")
)

// askNode asks one node for secrets. It returns what came, also with an error.
func (v *Vault) askNode(ctx context.Context, node stmt.Key, instance string, names []string) (map[string][]byte, error) {
	doc, err := crdt.ParseDocID(instance)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := v.cfg.Streams.Open(ctx, PeerOf(node), ProtoSecret)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := writeRecord(c, secretRequest{doc, names}); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for {
		var a secretAnswer
		if err := readRecord(c, maxSecretAnswer, &a); err != nil {
			return out, err
		}
		_, twice := out[a.Name]
		switch {
		case a.Refused != "":
			return out, fmt.Errorf("%w: %.*q", errRefused, refusedText, a.Refused)
		case a.End:
			return out, nil
		case twice || !slices.Contains(names, a.Name):
			return out, fmt.Errorf("%w: %.80q", errAnswer, a.Name)
		}
		out[a.Name] = a.Frame
	}
}

// answer serves ProtoSecret.
func (v *Vault) answer(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if err := v.respond(from, c); err != nil {
		v.cfg.Logger.Debug("question for secrets refused", "peer", from, "err", err)
	}
}

func (v *Vault) respond(from peer.ID, c net.Conn) error {
	asker, err := stmt.KeyOfPeerID(string(from))
	if err != nil {
		return err
	}
	refuse := func(text string, err error) error {
		return errors.Join(err, writeRecord(c, secretAnswer{Refused: text}))
	}
	select {
	case v.serve <- struct{}{}:
		defer func() { <-v.serve }()
	default:
		return errors.New("too many questions at once") // nothing is said: the peer may not listen yet
	}
	if !v.rates.begin(asker, v.cfg.Now()) {
		return errors.New("too many questions of this peer")
	}
	defer v.rates.end(asker)
	var req secretRequest
	if err := readRecord(c, maxSecretRequest, &req); err != nil {
		return refuse(malformed, err)
	}
	if len(req.Names) == 0 || len(req.Names) > crdt.MaxSecrets {
		return refuse(malformed, fmt.Errorf("%d names", len(req.Names)))
	}
	id := req.Instance.String()
	if err := v.entitled(asker, id); err != nil {
		return refuse(noRights, err)
	}
	for _, n := range req.Names {
		if f, ok := v.current(id, n); ok {
			if err := writeRecord(c, secretAnswer{Name: n, Frame: f}); err != nil {
				return err
			}
		}
	}
	return writeRecord(c, secretAnswer{End: true})
}

// entitled says whether a node may have an instance's secrets by what this node
// knows now: it is a member, and the keeper of a slot.
func (v *Vault) entitled(node stmt.Key, instance string) error {
	view, w := v.cfg.View(), v.cfg.World()
	if !view.IsMember(node, stmt.RoleNode) {
		return fmt.Errorf("%s is no member node", node)
	}
	for i := range w.Instances {
		if s := &w.Instances[i]; s.ID == instance {
			if w.Keeps(s, node) {
				return nil
			}
			return fmt.Errorf("%s keeps no slot of %s", node, instance)
		}
	}
	return fmt.Errorf("no instance %s", instance)
}

// current is the value of a secret, if it is the one that the state says now.
func (v *Vault) current(id, name string) (seal.Frame, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.held[id][name]
	i := slices.IndexFunc(v.known[id], func(c crdt.Secret) bool { return c.Name == name })
	return f, f != nil && i >= 0 && f.Sum() == v.known[id][i].Sum
}

// writeRecord writes one length-prefixed record.
func writeRecord(w io.Writer, r any) error {
	b, err := stmt.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readRecord reads a record of at most so many bytes.
func readRecord(r io.Reader, most int, into any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > uint32(most) {
		return fmt.Errorf("a record of %d bytes, at most %d", n, most)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return stmt.Unmarshal(b, into)
}

// askRates are token buckets by peer, bounded in number: when there are too many,
// all start anew.
type askRates struct {
	mu   sync.Mutex
	due  map[stmt.Key]time.Duration // when the peer's bucket is full again
	busy map[stmt.Key]int           // questions being answered
}

func newAskRates() *askRates {
	return &askRates{due: map[stmt.Key]time.Duration{}, busy: map[stmt.Key]int{}}
}

// begin says whether a peer may ask now, and counts it; it must end then.
func (r *askRates) begin(k stmt.Key, now time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due) >= maxAskers {
		clear(r.due)
	}
	due := max(r.due[k], now) + secretRate
	if due-now > secretBurst*secretRate || r.busy[k] >= servingOne {
		return false
	}
	r.due[k] = due
	r.busy[k]++
	return true
}

func (r *askRates) end(k stmt.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[k]--; r.busy[k] == 0 {
		delete(r.busy, k)
	}
}
