// Package formfile is the Formfile language: what an instance is made of and
// how it runs, in one small text.
//
// Guarantees:
//   - Parse reports every error of a file in one pass, sorted by position, each
//     with the line and column of the offending word. It never panics and
//     never touches anything but its argument.
//   - A *File that Parse returned without an error satisfies every bound of the
//     language (see the constants), so its users need not check again.
//   - Everything is bounded: the file, the number of words, steps and errors.
//
// Columns are 1-based and count Unicode code points; a tab is one column. A
// continued instruction keeps the true line and column of each of its words.
//
// Not guaranteed: that the base exists, that packages exist, that COPY sources
// exist, or that an SSH key is one that sshd accepts. The builder finds out.
package formfile

import (
	"encoding/json"
	"time"
)

// Bounds of the language.
const (
	MaxFileBytes   = 1 << 20   // a Formfile
	MaxLineBytes   = 256 << 10 // one instruction, with its continuations
	MaxWords       = 2048      // of one instruction
	MaxValueBytes  = 4 << 10   // one ENV value, description, entrypoint word, password …
	MaxRunBytes    = 64 << 10
	MaxSteps       = 128 // COPY, INSTALL, RUN and WORKDIR instructions
	MaxUsers       = 32
	MaxEnv         = 256
	MaxExpose      = 64
	MaxPackages    = 1024 // words of one INSTALL
	MaxSources     = 256  // sources of one COPY
	MaxEntrypoint  = 256  // words of an ENTRYPOINT
	MaxErrors      = 100  // errors reported for one file
	MaxSSHKeys     = 32   // per USER
	MinVCPU        = 1
	MaxVCPU        = 128
	MinMemoryBytes = 128 * MiB
	MaxMemoryBytes = 256000 * MiB
	MinDiskBytes   = 1 * GiB
	MaxDiskBytes   = 65535 * GiB
	MaxReplicas    = 64
	MaxGPUCount    = 8
)

// Units of MEM and DISK.
const (
	KiB uint64 = 1 << 10
	MiB uint64 = 1 << 20
	GiB uint64 = 1 << 30
	TiB uint64 = 1 << 40
)

// Defaults of instructions a file leaves out.
const (
	DefaultFrom        = "debian:12"
	DefaultVCPU        = 1
	DefaultMemoryBytes = 512 * MiB
	DefaultDiskBytes   = 5 * GiB
	DefaultWorkdir     = "/"
	DefaultRestart     = "always"
	DefaultInit        = "agent"
	DefaultPartition   = "keep"
	DefaultShell       = "/bin/bash"
)

// File is a parsed Formfile. It is plain data: treat it as read-only.
type File struct {
	Source      string     `json:"source"` // the name given to Parse
	Name        string     `json:"name"`   // DNS label
	Description string     `json:"description,omitempty"`
	From        string     `json:"from"` // base[:tag] or a CID; DefaultFrom if not given
	VCPU        int        `json:"vcpu"`
	MemoryBytes uint64     `json:"memory_bytes"` // whole MiB
	DiskBytes   uint64     `json:"disk_bytes"`   // whole MiB
	GPUs        []GPU      `json:"gpus,omitempty"`
	Users       []User     `json:"users,omitempty"`
	Steps       []Step     `json:"steps,omitempty"`
	Env         []EnvVar   `json:"env,omitempty"` // all ENV of the file, in order; a later one wins
	Workdir     string     `json:"workdir"`       // the last WORKDIR, cleaned, absolute
	NoCopy      bool       `json:"nocopy,omitempty"`
	Expose      []Port     `json:"expose,omitempty"`
	Health      *Health    `json:"health,omitempty"`
	Restart     string     `json:"restart"`            // always | on-failure | never
	Init        string     `json:"init"`               // agent
	Replicas    int        `json:"replicas,omitempty"` // 0: not given
	Partition   string     `json:"partition"`          // keep | stop-minority | fence
	Entrypoint  []string   `json:"entrypoint,omitempty"`
	Warnings    []*Warning `json:"warnings,omitempty"`
}

// Pos is a place in the file: 1-based line, 1-based column in code points.
type Pos struct {
	Line int `json:"line"`
	Col  int `json:"col"`
}

// GPU is a wish for Count devices of one model.
type GPU struct {
	Model string `json:"model"` // one of GPUModels
	Count int    `json:"count"` // 1–MaxGPUCount
}

// GPUModels are the models a Formfile may name.
var GPUModels = []string{"B200", "H100", "H200", "RTX5090"}

// User is an account that the guest makes when it boots; layers hold none.
type User struct {
	Pos          Pos      `json:"pos"`
	Username     string   `json:"username"`
	Password     Secret   `json:"password,omitempty"`      // as written; the builder hashes it
	PasswordHash Secret   `json:"password_hash,omitempty"` // given already hashed in crypt(3) form
	SSHKeys      []string `json:"ssh_authorized_keys,omitempty"`
	LockPassword bool     `json:"lock_passwd,omitempty"`
	Sudo         bool     `json:"sudo,omitempty"`
	Shell        string   `json:"shell"`
	SSHPwauth    bool     `json:"ssh_pwauth,omitempty"`
	DisableRoot  bool     `json:"disable_root"`              // default true
	ExpirePasswd bool     `json:"chpasswd_expire,omitempty"` // default false: an expired password blocks key logins without a terminal
	Groups       []string `json:"groups,omitempty"`          // supplementary
}

// Secret is text that must not reach logs or --json: every formatter shows
// "[redacted]". Convert it with string(s) to use it.
type Secret string

func (s Secret) String() string   { return s.mask() }
func (s Secret) GoString() string { return s.mask() }

// MarshalJSON shows that there is a secret, never which.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(s.mask()) }

func (s Secret) mask() string {
	if s == "" {
		return ""
	}
	return "[redacted]"
}

// EnvVar is one assignment. Scope is "system", "user:NAME" or "service:NAME".
// Only system variables reach RUN steps.
type EnvVar struct {
	Scope string `json:"scope"`
	Key   string `json:"key"`
	Value string `json:"value"`
	Pos   Pos    `json:"-"` // of the scope, if it is written
}

// Port is one port that the instance offers.
type Port struct {
	Port   int    `json:"port"`
	Proto  string `json:"proto"` // tcp | udp
	Public bool   `json:"public,omitempty"`
}

// Health is how to tell that the instance serves.
type Health struct {
	Kind     string        `json:"kind"` // cmd | tcp | http
	Command  []string      `json:"command,omitempty"`
	Port     int           `json:"port,omitempty"`
	Path     string        `json:"path,omitempty"` // http only, starts with "/"
	Interval time.Duration `json:"interval_ns"`    // default 10 s; 1 s – 1 h
	Timeout  time.Duration `json:"timeout_ns"`     // default 5 s; 100 ms – 10 min
	Retries  int           `json:"retries"`        // default 3; 1–100
}

// Op is the instruction of a Step.
type Op string

// The instructions that make up Steps.
const (
	OpCopy    Op = "COPY"
	OpInstall Op = "INSTALL"
	OpRun     Op = "RUN"
	OpEnv     Op = "ENV"
	OpWorkdir Op = "WORKDIR"
)

// Step is one instruction that the builder executes, in the file's order.
// Exactly the field of its Op is set. Workdir and Env are the state in effect
// at this step, its own ENV or WORKDIR included; Env holds system scope only,
// a later entry wins, and shares memory with the other steps.
type Step struct {
	Pos     Pos      `json:"pos"`
	Words   []Pos    `json:"-"` // of COPY's sources and destination, INSTALL's packages, WORKDIR's path
	Op      Op       `json:"op"`
	Text    string   `json:"text"` // the instruction on one line, for people and for cache keys
	Workdir string   `json:"workdir"`
	Env     []EnvVar `json:"env,omitempty"`
	Copy    *Copy    `json:"copy,omitempty"`
	Install []string `json:"install,omitempty"` // package names, perhaps with =version, /release or :arch
	Run     []string `json:"run,omitempty"`     // argv; the shell form is /bin/sh -c TEXT
}

// VolatileDirs are the directories of / that are file systems of their own, in a
// step and in the instance: empty at each start, so no COPY can fill them.
var VolatileDirs = []string{"proc", "sys", "dev", "run", "tmp"}

// Volatile gives the one of VolatileDirs, with its slash, that the cleaned
// absolute path p is or is below; "" if none.
func Volatile(p string) string {
	for _, d := range VolatileDirs {
		if within(p, "/"+d) {
			return "/" + d
		}
	}
	return ""
}

// Copy brings files of the context into the image.
//
// Sources are slash-separated, relative to the context, cleaned, and never
// start with "..". They may hold the globs of path.Match. Dest is absolute and
// cleaned.
//
// Dest names a directory if DestIsDir is set: it was written with a trailing
// slash or as ".", has several sources, or is a WORKDIR of this file or one of
// its parents (so "COPY ./hello.py /app" with "WORKDIR /app" gives
// /app/hello.py). The builder also treats it as one if the image already has a
// directory there, or if a glob matches several files. Otherwise a single file
// gets the name Dest. The content of a source directory always goes *into*
// Dest.
type Copy struct {
	Sources   []string `json:"sources"`
	Dest      string   `json:"dest"`
	DestIsDir bool     `json:"dest_is_dir,omitempty"`
	Chown     string   `json:"chown,omitempty"` // user[:group], names or numbers
	ChownPos  Pos      `json:"-"`
	Chmod     *uint32  `json:"chmod,omitempty"`    // 0–07777
	Implicit  bool     `json:"implicit,omitempty"` // neither COPY nor NOCOPY was given: the whole context to WORKDIR
}
