package build

// The helper processes: the builder's own binary, started again with a marker
// as its name. What they are asked comes as JSON on fd 3, what they answer goes
// as JSON to fd 4.
const (
	helperName = "formation-sandbox" // does one request
	usernsName = "formation-userns"  // waits for its user ID mapping, then becomes the broker
	brokerName = "formation-broker"  // root of a user namespace; starts one helper
)

// What a helper can do.
const (
	modeRun     = "run"     // run commands in the image
	modeCopy    = "copy"    // unpack a tar stream (stdin) into the image
	modePack    = "pack"    // make what steps changed a squashfs image
	modeInspect = "inspect" // mount the base and read its accounts
	modeExtract = "extract" // unpack a squashfs image into a directory
	modeRemove  = "remove"  // delete a directory tree
)

// A stack is the file systems of a step, below its own.
type stack struct {
	Base    string   `json:"base"`              // squashfs image or directory
	IsImage bool     `json:"is_image"`          // Base is an image, to be mounted by loop
	Lowers  []string `json:"lowers"`            // differences of the earlier steps, topmost first
	Scratch string   `json:"scratch,omitempty"` // an empty directory to mount things on
}

// A request is what a helper does. All paths are absolute.
type request struct {
	Mode   string `json:"mode"`
	Userns bool   `json:"userns"` // in a user namespace: overlay marks are user.overlay.*
	Stack  stack  `json:"stack"`
	Work   string `json:"work,omitempty"` // holds "upper" and "work" of the overlay

	Run    *runRequest  `json:"run,omitempty"`
	Copy   *copyRequest `json:"copy,omitempty"`
	Pack   *packRequest `json:"pack,omitempty"`
	Target string       `json:"target,omitempty"` // extract, remove
}

// A runRequest is a list of commands, run until one fails.
type runRequest struct {
	Commands [][]string `json:"commands"`
	Env      []string   `json:"env"`
	Dir      string     `json:"dir"`    // made if it is missing
	Mkdirs   []string   `json:"mkdirs"` // made before the commands
	Users    accounts   `json:"users"`  // those the guest will make: homes are theirs
	Resolv   []byte     `json:"resolv"` // /etc/resolv.conf for the time of the step
	CACerts  []byte     `json:"ca_certs"`
	Install  bool       `json:"install"`  // no service may start; use the package cache
	Packages []string   `json:"packages"` // of INSTALL; must exist when the last command starts
	AptLists string     `json:"apt_lists"`
	AptDebs  string     `json:"apt_debs"`
}

// A copyRequest says where the files of the tar stream go.
type copyRequest struct {
	Dest      string   `json:"dest"`
	DestIsDir bool     `json:"dest_is_dir"`
	Single    bool     `json:"single"` // one regular file: it may take the name Dest
	Chown     string   `json:"chown"`
	Chmod     *uint32  `json:"chmod"`
	Users     accounts `json:"users"` // those the guest will make
}

// A packRequest says which differences become one layer.
type packRequest struct {
	Uppers  []string `json:"uppers"` // topmost first; more than one are merged
	Clean   bool     `json:"clean"`  // remove from the only upper what package managers leave
	Install bool     `json:"install"`
	Image   string   `json:"image"`   // the squashfs image to write, if anything changed; "": only the digest
	Started int64    `json:"started"` // Unix seconds; younger files are of this step
}

// A reply is a helper's answer.
type reply struct {
	Error    string    `json:"error,omitempty"`
	Kind     string    `json:"kind,omitempty"`    // of the error: kindContext, kindMachine
	At       string    `json:"at,omitempty"`      // of a kindContext: inputError.at
	ExitCode int       `json:"exit_code"`         // of the command that failed
	Missing  []int     `json:"missing,omitempty"` // the indexes of Packages that do not exist
	Entries  int       `json:"entries"`           // pack: things in the layer
	Bytes    int64     `json:"bytes"`             // pack: file content
	Digest   string    `json:"digest"`            // pack: SHA-256 of the tar stream, in hex
	Warnings []string  `json:"warnings,omitempty"`
	Accounts *accounts `json:"accounts,omitempty"` // inspect
	HasCA    bool      `json:"has_ca"`             // inspect: the base brings CA certificates
}

const (
	kindContext = "context" // the author can mend it
	kindMachine = "machine" // this machine cannot do it
)

// Epoch is the time of everything in a layer that is not older: 2025-01-01
// UTC. Files of packages keep their (older) times, which the archive fixes.
const Epoch = 1735689600
