package p2p

import (
	"context"
	"crypto/sha256"
	"fmt"
	"regexp"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// gossipQueue is the length of the validation queue and of each peer's
	// outbound queue. The library's 32 lost messages at 20 a second.
	gossipQueue = 512
	// maxTopics bounds the topics one peer may claim to follow.
	maxTopics = 128
	// validateTimeout ends the context a validator gets.
	validateTimeout = 5 * time.Second
)

// gossip is pubsub with this network's rules.
type gossip struct {
	ps      *pubsub.PubSub
	host    *gossipHost
	self    peer.ID
	short   string
	repute  *repute
	offence func(p peer.ID, what string)

	mu     sync.Mutex
	topics map[string]*pubsub.Topic
	subbed map[string]bool
}

// followed returns the full names of the topics that have a subscription.
func (g *gossip) followed() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]string, 0, len(g.subbed))
	for t := range g.subbed {
		out = append(out, g.name(t))
	}
	return out
}

func newGossip(ctx context.Context, h *gossipHost, short string, now func() time.Time, near *near, trace pubsub.RawTracer, offence func(p peer.ID, what string)) (*gossip, error) {
	g := &gossip{
		host: h, self: h.ID(), short: short, repute: newRepute(now), offence: offence,
		topics: make(map[string]*pubsub.Topic), subbed: make(map[string]bool),
	}
	ours := regexp.MustCompile("^" + regexp.QuoteMeta("/formd/") + ".+" + regexp.QuoteMeta("/"+short) + "$")
	var traced []pubsub.Option
	if trace != nil {
		traced = append(traced, pubsub.WithRawTracer(trace))
	}
	ps, err := pubsub.NewGossipSub(ctx, h, append(traced,
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(messageID),
		pubsub.WithMaxMessageSize(MaxGossip+4096), // an RPC carries its message and some control
		pubsub.WithPeerOutboundQueueSize(gossipQueue),
		pubsub.WithValidateQueueSize(gossipQueue),
		pubsub.WithFloodPublish(true),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(pubsub.NewRegexpSubscriptionFilter(ours), maxTopics)),
		pubsub.WithPeerScore(scoreParams(g.repute, near)),
	)...)
	if err != nil {
		return nil, fmt.Errorf("p2p: start gossip: %w", err)
	}
	g.ps = ps
	return g, nil
}

// messageID is a hash of the content, so that copies which came by different
// ways, or were published by two nodes, are one message.
func messageID(m *pb.Message) string {
	h := sha256.New()
	h.Write([]byte(m.GetTopic()))
	h.Write([]byte{0})
	h.Write(m.GetData())
	return string(h.Sum(nil)[:20])
}

// scoreParams is deliberately mild. In a swarm of three every peer is needed,
// and the score parameters made for public networks (delivery rates, one IP per
// peer, time in mesh) punish the quiet and the neighbours. What counts is junk,
// judged by our own validators (repute), and breaking the router's rules. Of those
// who have done neither the near ones are better, by less than one point: so the
// library keeps some of them when it has too many, and looks for some when it has too
// few (docs/decisions/0024).
func scoreParams(r *repute, n *near) (*pubsub.PeerScoreParams, *pubsub.PeerScoreThresholds) {
	return &pubsub.PeerScoreParams{
			SkipAtomicValidation:      true,
			AppSpecificScore:          func(p peer.ID) float64 { return worth(r.score(p), n.score(p)) },
			AppSpecificWeight:         1,
			BehaviourPenaltyWeight:    -1,
			BehaviourPenaltyThreshold: 10,
			BehaviourPenaltyDecay:     0.8,
			DecayInterval:             10 * time.Second,
			DecayToZero:               0.1,
			RetainScore:               10 * time.Minute,
		}, &pubsub.PeerScoreThresholds{
			SkipAtomicValidation: true,
			GossipThreshold:      -100,
			PublishThreshold:     -200,
			GraylistThreshold:    -300,

			OpportunisticGraftThreshold: NearEnough,
		}
}

// worth is what a peer scores by what it sent and by how near it is, which makes up for
// nothing that it did.
func worth(repute, nearness float64) float64 {
	if repute < 0 {
		return repute
	}
	return nearness
}

func (g *gossip) name(topic string) string { return "/formd/" + topic + "/" + g.short }

func (g *gossip) join(topic string) (*pubsub.Topic, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.topics[topic]; t != nil {
		return t, nil
	}
	t, err := g.ps.Join(g.name(topic))
	if err != nil {
		return nil, fmt.Errorf("join topic %s: %w", topic, err)
	}
	g.topics[topic] = t
	return t, nil
}

func (g *gossip) publish(ctx context.Context, topic string, msg []byte) error {
	if len(msg) > MaxGossip {
		return fmt.Errorf("publish %d bytes to %s: %w", len(msg), topic, ErrTooLarge)
	}
	t, err := g.join(topic)
	if err != nil {
		return err
	}
	if err := t.Publish(ctx, msg); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}

// subscribe registers the validator before the subscription is announced.
func (g *gossip) subscribe(topic string, validate func(context.Context, peer.ID, []byte) bool) (cancel func(), err error) {
	t, err := g.join(topic)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.subbed[topic] {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, ErrSubscribed)
	}
	check := func(ctx context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		if from == g.self {
			return pubsub.ValidationAccept
		}
		if len(m.Data) > MaxGossip {
			g.offence(from, "size")
			return pubsub.ValidationReject
		}
		ok := validate(ctx, from, m.Data)
		g.repute.saw(from, ok)
		if !ok {
			// Not Reject: stale and unknown messages come from honest peers too.
			return pubsub.ValidationIgnore
		}
		return pubsub.ValidationAccept
	}
	if err := g.ps.RegisterTopicValidator(g.name(topic), check, pubsub.WithValidatorTimeout(validateTimeout)); err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	// A relay follows and forwards the topic; the validator is the reader.
	stop, err := t.Relay()
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	g.subbed[topic] = true
	return func() {
		stop()
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.subbed, topic)
		// The only error is that pubsub has ended, and the validator with it.
		_ = g.ps.UnregisterTopicValidator(g.name(topic))
	}, nil
}

// repute counts what validators said of each peer's messages. Counts halve
// every reputeHalf, so a peer that stops sending junk is heard again.
type repute struct {
	now   func() time.Time
	mu    sync.Mutex
	peers map[peer.ID]*record
}

type record struct {
	good, bad float64
	at        time.Time
}

const (
	reputeHalf = 30 * time.Second
	// junkFree is how many refused messages cost nothing, as long as more than
	// a third of a peer's messages are good.
	junkFree = 64
	// reputePeers bounds the table; the peer that was idle longest leaves.
	reputePeers = 1024
)

func newRepute(now func() time.Time) *repute {
	return &repute{now: now, peers: make(map[peer.ID]*record)}
}

func (r *repute) saw(p peer.ID, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.peers[p]
	if rec == nil {
		r.evict()
		rec = &record{at: r.now()}
		r.peers[p] = rec
	}
	rec.decay(r.now())
	if ok {
		rec.good++
	} else {
		rec.bad++
	}
}

func (r *repute) evict() {
	if len(r.peers) < reputePeers {
		return
	}
	var oldest peer.ID
	for p, rec := range r.peers {
		if oldest == "" || rec.at.Before(r.peers[oldest].at) {
			oldest = p
		}
	}
	delete(r.peers, oldest)
}

func (rec *record) decay(now time.Time) {
	for ; now.Sub(rec.at) >= reputeHalf && rec.good+rec.bad > 0.01; rec.at = rec.at.Add(reputeHalf) {
		rec.good /= 2
		rec.bad /= 2
	}
	if rec.good+rec.bad <= 0.01 {
		rec.at = now
	}
}

// score is 0, or as negative as a peer's refused messages are many, if they are
// the larger part of what it sends.
func (r *repute) score(p peer.ID) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec := r.peers[p]
	if rec == nil {
		return 0
	}
	rec.decay(r.now())
	if rec.bad <= junkFree || rec.bad <= 2*rec.good {
		return 0
	}
	return -rec.bad
}
