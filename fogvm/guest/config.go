package guest

// Config is what the host tells the guest when the guest says hello: who lives
// in it and what it runs. It is sent once per boot over the control channel
// (never over the network), encoded as JSON, at most MaxConfigBytes.
type Config struct {
	// Hostname is a DNS label; it becomes the kernel hostname and /etc/hostname.
	Hostname string `json:"hostname"`
	// Instance is the instance ID and Name the pack's NAME; both are exported to
	// the entrypoint as FORMATION_INSTANCE and FORMATION_NAME.
	Instance string `json:"instance,omitempty"`
	Name     string `json:"name,omitempty"`
	// Slot is the replica number, exported as FORMATION_SLOT.
	Slot int `json:"slot,omitempty"`

	Users []User `json:"users,omitempty"`
	// SSHKeys are the owner's public keys in authorized_keys form. They are
	// authorised for every user and live on a tmpfs only.
	SSHKeys []string `json:"ssh_keys,omitempty"`
	Env     []EnvVar `json:"env,omitempty"`

	// Workdir is absolute; empty means "/". It is created when missing.
	Workdir string `json:"workdir,omitempty"`
	// Entrypoint is an argv; empty means the guest runs no application and is
	// ready once it is configured.
	Entrypoint []string `json:"entrypoint,omitempty"`
	// EntrypointUser is the login that runs the entrypoint; empty means root.
	EntrypointUser string  `json:"entrypoint_user,omitempty"`
	Expose         []Port  `json:"expose,omitempty"`
	Health         *Health `json:"health,omitempty"`
	// Restart is RestartAlways (also when empty), RestartOnFailure or RestartNever.
	Restart string `json:"restart,omitempty"`
	// Init is InitAgent (also when empty). Any other value is refused.
	Init string `json:"init,omitempty"`
	// Mesh is the guest's place on the mesh; nil: it has none.
	Mesh *MeshConfig `json:"mesh,omitempty"`
}

// Values of Config.Restart and Config.Init.
const (
	RestartAlways    = "always"
	RestartOnFailure = "on-failure"
	RestartNever     = "never"

	InitAgent = "agent"
)

// User is one login of the guest. A user that the root filesystem already has
// keeps its numeric IDs.
type User struct {
	Name string `json:"name"`
	// UID is the number of a new user, and of its group if that is new too, which
	// files of the pack already belong to; 0: the first free one from 1000 on.
	UID int `json:"uid,omitempty"`
	// PasswordHash is a crypt(3) string; empty means no password can log in.
	PasswordHash string `json:"password_hash,omitempty"`
	// SSHKeys are authorised for this user, beside Config.SSHKeys.
	SSHKeys []string `json:"ssh_keys,omitempty"`
	Groups  []string `json:"groups,omitempty"`
	// Shell is absolute; empty means /bin/bash where it exists, else /bin/sh.
	Shell string `json:"shell,omitempty"`
	// Sudo puts the user into group sudo, and without password prompt where
	// sudo is installed.
	Sudo       bool `json:"sudo,omitempty"`
	LockPasswd bool `json:"lock_passwd,omitempty"`
	// SSHPasswordAuth allows this user to log in over SSH by password.
	SSHPasswordAuth bool `json:"ssh_pwauth,omitempty"`
	// DisableRoot false allows root to log in over SSH by key. Root may also
	// log in by key when there are no users at all.
	DisableRoot bool `json:"disable_root,omitempty"`
	// PasswordExpire asks for a new password at the first login. It only acts
	// together with SSHPasswordAuth: with keys alone it would lock users out of
	// every non-interactive session.
	PasswordExpire bool `json:"chpasswd_expire,omitempty"`
}

// EnvVar is one variable. Scope is "" or "system" (entrypoint, login shells,
// exec), "user:NAME" (that user's sessions) or "service:NAME" (the entrypoint
// when NAME is Config.Name or "entrypoint"; otherwise /etc/default/NAME).
type EnvVar struct {
	Scope string `json:"scope,omitempty"`
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Port is an EXPOSEd port. Proto is "tcp" (also when empty) or "udp".
type Port struct {
	Port   int    `json:"port"`
	Proto  string `json:"proto,omitempty"`
	Public bool   `json:"public,omitempty"`
}

// Kinds of health check.
const (
	HealthCommand = "cmd"
	HealthTCP     = "tcp"
	HealthHTTP    = "http"
)

// Health is a HEALTHCHECK. The zero Interval, Timeout and Retries mean 10 s,
// 5 s and 3.
type Health struct {
	Kind string `json:"kind"`
	// Command is an argv, for HealthCommand: healthy when it exits 0.
	Command []string `json:"command,omitempty"`
	// Target is for HealthTCP a "port" or "host:port", for HealthHTTP a "port",
	// "port/path", "/path" (port 80) or an http URL; a 2xx or 3xx answer is
	// healthy.
	Target          string `json:"target,omitempty"`
	IntervalSeconds int    `json:"interval_s,omitempty"`
	TimeoutSeconds  int    `json:"timeout_s,omitempty"`
	// Retries is the number of failures in a row that make a ready guest
	// unhealthy.
	Retries int `json:"retries,omitempty"`
}

// Phase is what the agent says of its guest.
type Phase string

// Phases of a guest, in the order a healthy one passes them.
const (
	PhaseStarting  Phase = "starting"  // configured, entrypoint not ready yet
	PhaseReady     Phase = "ready"     // ready, or a finished job that succeeded
	PhaseUnhealthy Phase = "unhealthy" // was asked to run and does not do well; still trying
	PhaseFailed    Phase = "failed"    // gave up: Restart says not to try again
	PhaseStopping  Phase = "stopping"
)

// Status is the agent's report, sent on every change and at least every
// StatusInterval.
type Status struct {
	Phase Phase `json:"phase"`
	// Reason is for a user to read; empty when all is well. At most MaxReason bytes.
	Reason string `json:"reason,omitempty"`
	// Restarts counts the entrypoint's restarts since this boot.
	Restarts int `json:"restarts,omitempty"`
	// SSHHostKey is the guest's ed25519 host key, "ssh-ed25519 AAAA…"; empty
	// when the guest has no sshd.
	SSHHostKey string `json:"ssh_host_key,omitempty"`
	// MeshKey is the guest's WireGuard public key; empty while it is no peer of
	// anybody.
	MeshKey string `json:"mesh_key,omitempty"`
	// MeshProblem is why the guest is not on the mesh, or what of its host's word
	// it does not believe; as Reason.
	MeshProblem string `json:"mesh_problem,omitempty"`
}

// ExecRequest asks for one command in the guest.
type ExecRequest struct {
	// Argv must not be empty; Argv[0] is looked up in the guest's PATH.
	Argv []string `json:"argv"`
	// Env entries are "K=V", added to the system scope and the user's.
	Env []string `json:"env,omitempty"`
	// Workdir defaults to the user's home.
	Workdir string `json:"workdir,omitempty"`
	// User defaults to root.
	User string `json:"user,omitempty"`
	// TTY allocates a pseudo-terminal of Size; stderr is then merged into stdout.
	TTY  bool       `json:"tty,omitempty"`
	Size WindowSize `json:"size,omitzero"`
}

// WindowSize is a terminal's size in characters.
type WindowSize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}
