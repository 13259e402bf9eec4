package store

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"
)

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	baseName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}(:[a-zA-Z0-9._-]{1,63})?$`)
	userName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	word     = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]{0,31}$`)
	envKey   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,255}$`)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

func (r *Root) check() error {
	switch {
	case r.Version != Version:
		return invalid("format version %d", r.Version)
	case !dnsLabel.MatchString(r.Name):
		return invalid("pack name %q is no DNS label", r.Name)
	case len(r.Author) != ed25519.PublicKeySize:
		return invalid("author of %d bytes", len(r.Author))
	case len(r.Layers) > MaxLayers:
		return invalid("%d layers, at most %d", len(r.Layers), MaxLayers)
	case !r.Base.Defined() || r.Base.Type() != cid.DagCBOR:
		return invalid("base is no DAG-CBOR link")
	}
	if err := CheckCID(r.Base); err != nil {
		return err
	}
	for i, e := range r.Layers {
		if err := e.check(); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return r.Run.check()
}

func (b *Base) check() error {
	switch {
	case b.Version != Version:
		return invalid("format version %d", b.Version)
	case !baseName.MatchString(b.Name):
		return invalid("base name %q", b.Name)
	case len(b.Author) != ed25519.PublicKeySize:
		return invalid("author of %d bytes", len(b.Author))
	case !b.Kernel.Root.Defined() || !b.Rootfs.Root.Defined():
		return invalid("a base needs a kernel and a root file system")
	}
	for _, e := range b.Entries() {
		if err := e.check(); err != nil {
			return fmt.Errorf("%s: %w", e.Kind, err)
		}
	}
	return nil
}

func (e Entry) check() error {
	switch {
	case !e.Root.Defined() || (e.Root.Type() != cid.Raw && e.Root.Type() != cid.DagProtobuf):
		return invalid("entry root is no file")
	case e.Size <= 0:
		return invalid("entry of %d bytes", e.Size)
	case len(e.SHA256) != sha256.Size:
		return invalid("entry hash of %d bytes", len(e.SHA256))
	case !word.MatchString(e.Kind) || !word.MatchString(e.Format):
		return invalid("entry kind %q, format %q", e.Kind, e.Format)
	}
	if _, err := minChunk(e.Chunker); err != nil {
		return err
	}
	return CheckCID(e.Root)
}

// minChunk is the smallest chunk a chunker makes, the last one excepted. It
// bounds how many leaves a declared size can have.
func minChunk(chunker string) (int64, error) {
	if chunker == DefaultChunker {
		return 128 << 10, nil
	}
	if size, ok := strings.CutPrefix(chunker, "size-"); ok {
		n, err := strconv.ParseInt(size, 10, 64)
		if err == nil && n >= 16<<10 && n <= MaxChunk {
			return n, nil
		}
	}
	return 0, invalid("chunker %q is not %q or size-16384 … size-%d", chunker, DefaultChunker, MaxChunk)
}

func (c RunConfig) check() error {
	switch {
	case c.VCPU < 0 || c.VCPU > 128:
		return invalid("%d vCPUs", c.VCPU)
	case c.MemoryBytes > 256000<<20:
		return invalid("%d bytes of memory", c.MemoryBytes)
	case c.DiskBytes > 65535<<30:
		return invalid("%d bytes of disk", c.DiskBytes)
	case c.Replicas < 0 || c.Replicas > 64:
		return invalid("%d replicas", c.Replicas)
	case c.Workdir != "" && !strings.HasPrefix(c.Workdir, "/"):
		return invalid("working directory %q is not absolute", c.Workdir)
	}
	for _, u := range c.Users {
		if !userName.MatchString(u.Name) {
			return invalid("user name %q", u.Name)
		}
	}
	for _, v := range c.Env {
		if !envKey.MatchString(v.Key) || strings.ContainsRune(v.Value, 0) {
			return invalid("variable %q", v.Key)
		}
	}
	for _, a := range c.Entrypoint {
		if strings.ContainsRune(a, 0) {
			return invalid("entrypoint with a zero byte")
		}
	}
	for _, p := range c.Expose {
		if p.Port < 1 || p.Port > 65535 || (p.Proto != "tcp" && p.Proto != "udp") {
			return invalid("port %d/%s", p.Port, p.Proto)
		}
	}
	return nil
}

// size of all entries; an overflow is caught by the limit.
func totalSize(entries []Entry, limit int64) (int64, error) {
	var sum int64
	for _, e := range entries {
		if e.Size > limit || sum+e.Size > limit {
			return 0, fmt.Errorf("%w: images of more than %d bytes", ErrTooLarge, limit)
		}
		sum += e.Size
	}
	return sum, nil
}
