package store

import (
	"crypto/ed25519"
	"encoding/hex"

	"github.com/ipfs/go-cid"
)

// Version is the format version written into root nodes; others are refused.
const Version = 1

// Bounds of a pack, checked before a root is written and before anything it
// links is fetched.
const (
	MaxRoot      = 64 << 10  // bytes of a root node
	MaxLayers    = 64        // layers of a pack
	MaxChunk     = 1 << 20   // bytes of one leaf; buzhash makes at most 512 KiB
	MaxNode      = 256 << 10 // bytes of an interior node (1,024 links are about 50 KiB)
	MaxLinks     = 1024      // links of an interior node, as boxo's balanced layout makes them
	MaxDepth     = 5         // levels of an image's DAG; 1,024⁴ chunks need 5
	MaxSignature = 4 << 10   // bytes of a detached signature block
)

// Root is a Formpack: everything needed to run it, by content. Its CID is the
// pack's name. Keys this version does not know survive in the stored bytes and
// are relayed, because the bytes are what is hashed.
type Root struct {
	Version     int       `json:"version"`     // set by PutPack
	Name        string    `json:"name"`        // a DNS label
	Description string    `json:"description"` // free text, may be empty
	Base        cid.Cid   `json:"base"`        // root node of the base, always present
	Layers      []Entry   `json:"layers"`      // overlay diffs on the base, topmost first
	Run         RunConfig `json:"run"`
	Parent      *cid.Cid  `json:"parent,omitempty"`  // the pack this one was committed from; history, not fetched
	Message     string    `json:"message,omitempty"` // of a commit
	Salt        []byte    `json:"salt,omitempty"`    // of the password hashes, recorded so that builds repeat

	// Author is the key whose detached signature is beside the root. Set by
	// PutPack from the signing key.
	Author ed25519.PublicKey `json:"author"`
}

// RunConfig is how a pack wants to be run. Zero values mean "not said".
type RunConfig struct {
	VCPU        int      `json:"vcpu" cbor:"vcpu"`                                 // 1–128
	MemoryBytes uint64   `json:"memory_bytes" cbor:"memory"`                       // bytes
	DiskBytes   uint64   `json:"disk_bytes" cbor:"disk"`                           // bytes of the writable disk
	Users       []User   `json:"users,omitempty" cbor:"users,omitempty"`           // in Formfile order
	Env         []EnvVar `json:"env,omitempty" cbor:"env,omitempty"`               // in Formfile order, later wins
	Workdir     string   `json:"workdir,omitempty" cbor:"workdir,omitempty"`       // absolute
	Entrypoint  []string `json:"entrypoint,omitempty" cbor:"entrypoint,omitempty"` // argv; a shell form is ["/bin/sh","-c",…]
	Expose      []Port   `json:"expose,omitempty" cbor:"expose,omitempty"`         // in Formfile order
	Health      *Health  `json:"health,omitempty" cbor:"health,omitempty"`         // nil: ports, else 2 s of life
	Restart     string   `json:"restart,omitempty" cbor:"restart,omitempty"`       // always | on-failure | never
	Init        string   `json:"init,omitempty" cbor:"init,omitempty"`             // agent | systemd (which no guest has yet)
	Partition   string   `json:"partition,omitempty" cbor:"partition,omitempty"`   // keep | stop-minority | fence
	Replicas    int      `json:"replicas,omitempty" cbor:"replicas,omitempty"`     // 1–64, 0: the shipper decides
	GPU         []GPU    `json:"gpu,omitempty" cbor:"gpu,omitempty"`               // devices asked for
	Labels      []EnvVar `json:"labels,omitempty" cbor:"labels,omitempty"`         // free annotations
}

// User is a login of the guest. Passwords are hashed before they get here.
type User struct {
	Name              string   `json:"name" cbor:"name"`
	UID               int      `json:"uid,omitempty" cbor:"uid,omitempty"`            // number that COPY --chown used; 0: the guest chooses
	PasswordHash      string   `json:"password_hash,omitempty" cbor:"hash,omitempty"` // crypt(3), $6$…
	SSHAuthorizedKeys []string `json:"ssh_authorized_keys,omitempty" cbor:"keys,omitempty"`
	Groups            []string `json:"groups,omitempty" cbor:"groups,omitempty"`
	Shell             string   `json:"shell,omitempty" cbor:"shell,omitempty"`
	Sudo              bool     `json:"sudo,omitempty" cbor:"sudo,omitempty"`
	LockPassword      bool     `json:"lock_passwd,omitempty" cbor:"lock,omitempty"`
	SSHPasswordAuth   bool     `json:"ssh_pwauth,omitempty" cbor:"pwauth,omitempty"`
	DisableRoot       bool     `json:"disable_root,omitempty" cbor:"noroot,omitempty"`
	ExpirePassword    bool     `json:"chpasswd_expire,omitempty" cbor:"expire,omitempty"`
}

// EnvVar is one variable. Scope is "system", "user:NAME" or "service:NAME".
type EnvVar struct {
	Scope string `json:"scope,omitempty" cbor:"scope,omitempty"`
	Key   string `json:"key" cbor:"key"`
	Value string `json:"value" cbor:"value"`
}

// Port is a port the guest listens on.
type Port struct {
	Port   int    `json:"port" cbor:"port"`   // 1–65535
	Proto  string `json:"proto" cbor:"proto"` // tcp | udp
	Public bool   `json:"public,omitempty" cbor:"public,omitempty"`
}

// Health is a check run inside the guest. Durations are milliseconds.
type Health struct {
	Kind     string   `json:"kind" cbor:"kind"`                           // cmd | tcp | http
	Command  []string `json:"command,omitempty" cbor:"command,omitempty"` // argv, kind cmd
	Port     int      `json:"port,omitempty" cbor:"port,omitempty"`       // kinds tcp and http
	Path     string   `json:"path,omitempty" cbor:"path,omitempty"`       // kind http
	Interval int64    `json:"interval_ms,omitempty" cbor:"interval,omitempty"`
	Timeout  int64    `json:"timeout_ms,omitempty" cbor:"timeout,omitempty"`
	Retries  int      `json:"retries,omitempty" cbor:"retries,omitempty"`
}

// GPU is a device model and how many of it.
type GPU struct {
	Model string `json:"model" cbor:"model"`
	Count int    `json:"count" cbor:"count"`
}

// Base is what packs build on: kernel and modules apart from the root file
// system, because a kernel update changes most of an image.
type Base struct {
	Version       int      `json:"version"` // set by PutBase
	Name          string   `json:"name"`    // "debian:12"
	Kernel        Entry    `json:"kernel"`  // vmlinuz
	Initrd        Entry    `json:"initrd"`  // cpio of the modules needed to find the root, and their load order
	Modules       Entry    `json:"modules"` // squashfs, a lower layer with usr/lib/modules
	Rootfs        Entry    `json:"rootfs"`  // squashfs, the lowest layer
	Packages      []string `json:"packages,omitempty"`
	KernelVersion string   `json:"kernel_version,omitempty"`
	Arch          string   `json:"arch,omitempty"`
	Provenance    string   `json:"provenance,omitempty"` // how it was made, for people

	Author ed25519.PublicKey `json:"author"` // set by PutBase
}

// Entries lists the base's images, lowest layer last; absent ones are left out.
func (b *Base) Entries() []Entry {
	var out []Entry
	for _, e := range []Entry{b.Kernel, b.Initrd, b.Modules, b.Rootfs} {
		if e.Root.Defined() {
			out = append(out, e)
		}
	}
	return out
}

// Entry is one image of a pack or a base.
type Entry struct {
	Kind    string  `json:"kind"`    // kernel | initrd | modules | rootfs | layer
	Root    cid.Cid `json:"root"`    // of the UnixFS DAG; the CID other IPFS tools give the file
	Size    int64   `json:"size"`    // bytes of the file
	SHA256  Digest  `json:"sha256"`  // of the whole file, 32 bytes
	Format  string  `json:"format"`  // squashfs | vmlinuz | cpio | raw
	Chunker string  `json:"chunker"` // how it was cut; DefaultChunker
}

// DefaultChunker cuts content-defined chunks of 128–512 KiB, so that an updated
// image re-uses most of its predecessor's.
const DefaultChunker = "buzhash"

// Digest is a SHA-256, hex in text and JSON.
type Digest []byte

// MarshalText writes hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d)), nil }

// UnmarshalText reads hex of any length; a Digest is judged where it is used.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = hex.DecodeString(string(text))
	return err
}
