package scenario

// Verb is what a step can do.
type Verb struct {
	Name, About string
	takes       []string // fields beside "do"
	needs       []string // of those
	kinds       []string // that Kind may be; none: it takes none
}

// Verbs are all there are, by name.
var Verbs = []Verb{
	{"bit-rot", "a part of what a node has on disk reads as garbage from its next start on", []string{"node"}, []string{"node"}, nil},
	{"bounce", "a daemon is killed, or with kind machine its machine, and starts again after a time", []string{"node", "for", "kind"}, []string{"node", "for"}, []string{"daemon", "machine"}},
	{"change", "an owner restarts one of its instances", []string{"owner", "node"}, nil, nil},
	{"clock-jump", "the clock that people read jumps by so much", []string{"node", "by"}, []string{"node", "by"}, nil},
	{"clog", "messages to and from a node wait until it is unclogged", []string{"node"}, []string{"node"}, nil},
	{"corrupt", "those that the scenario has for it lie from now on", nil, nil, nil},
	{"crash", "a daemon is killed, or with kind machine its machine goes down; it comes back when all is calm", []string{"node", "kind"}, []string{"node"}, []string{"daemon", "machine"}},
	{"cut", "nothing reaches a share of the others from a node, while all reaches it", []string{"node", "share"}, []string{"node"}, nil},
	{"delete", "an owner deletes one of its instances, or the one of a name", []string{"owner", "node", "name"}, nil, nil},
	{"disk-full", "a node can write nothing for a time", []string{"node", "for"}, []string{"node", "for"}, nil},
	{"drain", "a node gives its replicas away", []string{"node"}, []string{"node"}, nil},
	{"equivocate-owner", "an owner says two things by one number, to two nodes", []string{"owner"}, nil, nil},
	{"extend", "an owner says of one of its instances, or of the one of a name, what this version does not know", []string{"owner", "node", "name"}, nil, nil},
	{"heal", "all cuts and partitions end", nil, nil, nil},
	{"isolate", "a node is cut off from all others", []string{"node"}, []string{"node"}, nil},
	{"join", "a share of the nodes that were not there yet joins", []string{"share"}, nil, nil},
	{"kill", "a machine goes away for good", []string{"node"}, []string{"node"}, nil},
	{"lie", "each that lies tells one lie", []string{"kind"}, nil, []string{"boast", "equivocate", "forge", "replay", "usurp"}},
	{"lose-votes", "a node that is down forgets what it promised as a voter", []string{"node"}, []string{"node"}, nil},
	{"loss", "so many messages are lost from now on", []string{"share"}, nil, nil},
	{"nat", "a share of the nodes reach each other through a relay only, from now on", []string{"share"}, []string{"share"}, nil},
	{"partition", "the swarm is split: a share of the nodes, drawn, on one side", []string{"share", "node"}, nil, nil},
	{"replay", "a node says again what it once heard", []string{"node"}, []string{"node"}, nil},
	{"scale", "an owner changes how many replicas one of its instances has, or the one of a name", []string{"owner", "node", "name", "replicas"}, nil, nil},
	{"ship", "an owner brings a new instance", []string{"owner", "node", "name", "replicas", "partition", "operators", "pack-mib"}, nil, nil},
	{"slow", "a node takes so much longer for every message, for a time", []string{"node", "by", "for"}, []string{"node", "by", "for"}, nil},
	{"slow-disk", "a node takes so much longer for every write, for a time", []string{"node", "by", "for"}, []string{"node", "by", "for"}, nil},
	{"stall", "a daemon does nothing for a time, while messages wait", []string{"node", "for"}, []string{"node", "for"}, nil},
	{"start", "a node that is down starts", []string{"node"}, []string{"node"}, nil},
	{"suspend", "a machine sleeps for a time", []string{"node", "for"}, []string{"node", "for"}, nil},
	{"torn-log", "a machine goes down with what it was writing half written", []string{"node", "for"}, []string{"node", "for"}, nil},
	{"unclog", "a node that is clogged no longer is", []string{"node"}, []string{"node"}, nil},
	{"undrain", "a node takes replicas again", []string{"node"}, []string{"node"}, nil},
	{"upgrade", "a daemon restarts in the other of two versions, of which the later says what the earlier does not know", []string{"node", "for"}, []string{"node", "for"}, nil},
}
