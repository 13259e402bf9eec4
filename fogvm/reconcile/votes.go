package reconcile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/formthefog/formation/crdt"
	"github.com/formthefog/formation/crdt/lease"
	"github.com/formthefog/formation/crdt/stmt"
	"github.com/formthefog/formation/fogvm/reconcile/plan"
	"github.com/formthefog/formation/store/whole"
)

// ProtoLease is the bare protocol name of requests for leases: one frame each
// way, a length of four bytes and a map (docs/wire.md).
const ProtoLease = "lease/1"

// maxLeaseFrame bounds a request and an answer.
const maxLeaseFrame = 1 << 10

// leaseTimeout bounds one question: the round it belongs to does not last longer.
const leaseTimeout = 5 * time.Second

// leaseRequest is what a holder says. Who it is, the connection says; which claim
// it has, the voter's own state.
type leaseRequest struct {
	Instance crdt.DocID  `cbor:"inst"`
	Set      lease.SetID `cbor:"set"`
	Nonce    uint64      `cbor:"nonce"`
	Held     bool        `cbor:"held,omitempty"`
	Release  bool        `cbor:"release,omitempty"`
}

type leaseAnswer struct {
	Granted bool   `cbor:"ok,omitempty"`
	Busy    bool   `cbor:"busy,omitempty"`
	Later   bool   `cbor:"later,omitempty"`
	Reason  string `cbor:"why,omitempty"`
}

// maxReason bounds what another node says.
const maxReason = 200

// ask puts a question to a voter, which may be this node.
func (l *Leases) ask(ctx context.Context, a lease.Ask) (lease.Answer, error) {
	doc, err := crdt.ParseDocID(a.Instance)
	if err != nil {
		return lease.Answer{}, err
	}
	r := leaseRequest{Instance: doc, Set: a.Set, Nonce: a.Nonce, Held: a.Held, Release: a.Release}
	if a.To == l.cfg.Self {
		return l.judge(l.cfg.Self, r), nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	c, err := l.cfg.Streams.Open(ctx, PeerOf(a.To), ProtoLease)
	if err != nil {
		return lease.Answer{}, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var answer leaseAnswer
	if err := errors.Join(writeLeaseFrame(c, r), readLeaseFrame(c, &answer)); err != nil {
		return lease.Answer{}, err
	}
	return lease.Answer{Granted: answer.Granted, Busy: answer.Busy, Later: answer.Later, Reason: answer.Reason[:min(len(answer.Reason), maxReason)]}, nil
}

// vote answers one request of another node.
func (l *Leases) vote(ctx context.Context, from peer.ID, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	select {
	case l.serve <- struct{}{}:
		defer func() { <-l.serve }()
	default:
		return // busy: the holder asks again
	}
	k, err := KeyOf(from)
	if err != nil || !l.cfg.View().IsMember(k, stmt.RoleNode) || c.SetDeadline(time.Now().Add(leaseTimeout)) != nil {
		return
	}
	var r leaseRequest
	if err := readLeaseFrame(c, &r); err != nil {
		l.log.Debug("a request for a lease", "peer", k, "err", err)
		return
	}
	a := l.judge(k, r)
	_ = writeLeaseFrame(c, leaseAnswer{Granted: a.Granted, Busy: a.Busy, Later: a.Later, Reason: a.Reason}) // a holder that went away asks again
}

// judge answers a request, and counts what it answers unless a lease was given
// back by it.
func (l *Leases) judge(from stmt.Key, r leaseRequest) lease.Answer {
	a := l.decide(from, r)
	if r.Release {
		return a
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Granted {
		l.given++
	} else {
		l.denied++
	}
	return a
}

// decide answers a request by the state that this node holds. What it grants is on
// disk before it says so.
func (l *Leases) decide(from stmt.Key, r leaseRequest) lease.Answer {
	no := func(why string) lease.Answer { return lease.Answer{Reason: why} }
	if !l.cfg.Ready() {
		return no("its state is not synchronised")
	}
	q := plan.Question{Instance: r.Instance.String(), Set: r.Set, Nonce: r.Nonce, Held: r.Held, Release: r.Release}
	request, known, refusal := plan.Ballot(l.cfg.View(), l.cfg.Self, from, q)
	if refusal != "" {
		return no(refusal)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a, changed := l.voter.Ask(l.cfg.Now(), request, known)
	if !changed {
		return a
	}
	if err := saveVotes(l.cfg.Dir, l.voter.Memory()); err != nil {
		l.log.Error("a vote is not kept, and so not given", "err", err)
		return no("it cannot keep its vote")
	}
	return a
}

func writeLeaseFrame(w io.Writer, v any) error {
	b, err := stmt.Marshal(v)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	return nil
}

func readLeaseFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxLeaseFrame {
		return fmt.Errorf("lease: a frame of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	if err := stmt.Unmarshal(b, v); err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	return nil
}

const votesFile = "votes"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// loadVotes reads what a voter kept; nil when there is nothing, or nothing that is
// whole: then the voter knows that it may have forgotten.
func loadVotes(dir string) (*lease.Memory, error) {
	b, err := os.ReadFile(filepath.Join(dir, votesFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n := len(b) - 4
	if n < 0 || crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
		return nil, nil
	}
	var m lease.Memory
	if stmt.Unmarshal(b[:n], &m) != nil {
		return nil, nil // another version's
	}
	return &m, nil
}

// saveVotes replaces what is kept. When it returns nil that outlives a crash of
// the machine.
func saveVotes(dir string, m lease.Memory) error {
	b, err := stmt.Marshal(m)
	if err != nil {
		return err
	}
	return whole.Write(filepath.Join(dir, votesFile), binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), 0o600)
}
