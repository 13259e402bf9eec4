package exchange

import (
	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
)

// bitswapStreams is how many bitswap streams one peer may have open. Its server
// opens one a message and counts a block as sent when the stream was reset, so
// too low a limit loses blocks for ever (boxo's default host: about 75).
const bitswapStreams = 4096

// Wants outstanding to one peer beyond this are dropped silently by the server,
// so nothing may ask for more. The library's default is 1,024.
const maxQueuedWants = 4096

// targetMessage is the size of messages the server aims at: of a few blocks, since
// each costs a stream. workers is how many it sends at once. Together they bound
// what lies between a slow peer and its next block (4 MiB: at 1 MB/s well below
// the stall time), and the client's memory.
const (
	targetMessage = 1 << 20
	workers       = 4
)

// bitswapOptions are measured: a third faster and 10 MiB smaller at the client
// than 8 workers with messages of 512 KiB, on one machine.
func bitswapOptions() []bitswap.Option {
	return []bitswap.Option{
		bitswap.MaxOutstandingBytesPerPeer(16 << 20),
		bitswap.TaskWorkerCount(workers),
		bitswap.EngineTaskWorkerCount(workers),
		bitswap.MaxQueuedWantlistEntriesPerPeer(maxQueuedWants),
		bitswap.WithTargetMessageSize(targetMessage),
		bitswap.WithoutDuplicatedBlockStats(),
	}
}

// Limits raises what bitswap and bulk streams need in a resource manager's
// configuration; the rest is left as it is. Use it as
//
//	limits := rcmgr.PartialLimitConfig{}
//	exchange.Limits(&limits, network)
//	rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(rcmgr.DefaultLimits.AutoScale())))
func Limits(cfg *rcmgr.PartialLimitConfig, network string) {
	if cfg.Protocol == nil {
		cfg.Protocol = map[protocol.ID]rcmgr.ResourceLimits{}
	}
	if cfg.ProtocolPeer == nil {
		cfg.ProtocolPeer = map[protocol.ID]rcmgr.ResourceLimits{}
	}
	for _, p := range bitswapProtocols(network) {
		cfg.Protocol[p] = streams(4*bitswapStreams, 1<<30)
		cfg.ProtocolPeer[p] = streams(bitswapStreams, 256<<20)
	}
	// A peer's streams and the whole system's are counted in scopes of their
	// own, and the smallest limit decides.
	cfg.PeerDefault.Streams = 2 * bitswapStreams
	cfg.PeerDefault.StreamsInbound = bitswapStreams + 512
	cfg.PeerDefault.StreamsOutbound = bitswapStreams + 512
	cfg.System.Streams = 8 * bitswapStreams
	cfg.System.StreamsInbound = 4*bitswapStreams + 2048
	cfg.System.StreamsOutbound = 4*bitswapStreams + 2048
	cfg.Transient.Streams = bitswapStreams
	cfg.Transient.StreamsInbound = bitswapStreams
	cfg.Transient.StreamsOutbound = bitswapStreams
}

func streams(n, memory int) rcmgr.ResourceLimits {
	return rcmgr.ResourceLimits{
		Streams: rcmgr.LimitVal(n), StreamsInbound: rcmgr.LimitVal(n), StreamsOutbound: rcmgr.LimitVal(n),
		Memory: rcmgr.LimitVal64(memory),
	}
}

func bitswapProtocols(network string) []protocol.ID {
	out := make([]protocol.ID, 0, 4)
	for _, p := range []protocol.ID{bsnet.ProtocolBitswap, bsnet.ProtocolBitswapOneOne, bsnet.ProtocolBitswapOneZero, bsnet.ProtocolBitswapNoVers} {
		out = append(out, Prefix(network)+p)
	}
	return out
}
