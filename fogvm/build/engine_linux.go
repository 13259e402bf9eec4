package build

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/formthefog/formation/store"
	"github.com/formthefog/formation/store/whole"
)

// Build executes opts.File and writes the pack to opts.Store. Errors to tell
// apart: *StepError, *ContextError, ErrUnsupported, the store's, and ctx's when
// it was cancelled. Builds may run at the same time, with one cache directory,
// too.
func Build(ctx context.Context, opts Options) (_ *Result, err error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	begin := time.Now()
	base, err := opts.Store.Base(ctx, opts.Base)
	if err != nil {
		return nil, fmt.Errorf("base %s: %w", opts.Base, err)
	}
	spawn, err := newSpawner()
	if err != nil {
		return nil, err
	}
	bctx, err := openContext(opts.Context, opts.Formfile)
	if err != nil {
		return nil, err
	}
	defer closeWith(bctx.close, &err)
	w, err := openWorkspace(ctx, opts.CacheDir, spawn)
	if err != nil {
		return nil, err
	}
	defer closeWith(w.close, &err)
	b := &builder{Options: opts, ctxDir: bctx, ws: w, plan: planSteps(opts.File), counted: map[string]account{}}
	if err := b.openBase(ctx, base); err != nil {
		return nil, err
	}
	if err := b.resolve(); err != nil {
		return nil, err
	}
	if err := b.runSteps(ctx); err != nil {
		return nil, err
	}
	if err := b.mergeTail(ctx); err != nil {
		return nil, err
	}
	res, err := b.finish(ctx)
	if err != nil {
		return nil, err
	}
	if err := w.evict(ctx, opts.CacheBytes); err != nil {
		return nil, fmt.Errorf("trim the cache: %w", err)
	}
	res.Duration = time.Since(begin)
	return res, nil
}

// closeWith adds the error of a deferred close to *err, which stays as it is
// without one.
func closeWith(close func() error, err *error) {
	if cerr := close(); cerr != nil {
		*err = errors.Join(*err, cerr)
	}
}

func (o *Options) check() error {
	switch {
	case o.Context == "" || o.File == nil || o.Store == nil || o.CacheDir == "":
		return errors.New("build: Context, File, Store and CacheDir are required")
	case !o.Base.Defined():
		return errors.New("build: Base is required")
	case len(o.Key) != ed25519.PrivateKeySize:
		return errors.New("build: Key is required")
	}
	if o.Formfile == "" {
		o.Formfile = formfileName
	}
	if o.Reporter == nil {
		o.Reporter = silent{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.maxLayers == 0 {
		o.maxLayers = MaxLayers
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 10 << 30
	}
	return nil
}

// A builder is one Build.
type builder struct {
	Options
	ctxDir *buildContext
	ws     *workspace

	stack  stack         // base and what the steps so far made
	layers []store.Entry // of stack.Lowers, topmost first
	digest string        // of the base's root file system, in hex
	base   baseInfo
	users  accounts // those the guest will make, as the base leaves room for them

	// counted are the numbers that steps so far used for users of the Formfile.
	counted map[string]account

	plan     []planned
	cached   int
	warnings []string
}

// baseInfo is what the builder knows of a base without mounting it.
type baseInfo struct {
	Accounts accounts `json:"accounts"`
	HasCA    bool     `json:"has_ca"`
}

// openBase finds out how to use the base's file system here, and its names.
func (b *builder) openBase(ctx context.Context, base *store.Base) error {
	image, err := b.Store.Path(base.Rootfs)
	if err != nil {
		return fmt.Errorf("root file system of base %s: %w", b.Base, err)
	}
	if image, err = filepath.Abs(image); err != nil {
		return err
	}
	b.digest = fmt.Sprintf("%x", []byte(base.Rootfs.SHA256))
	b.stack = stack{Base: image, IsImage: true}
	infoFile := filepath.Join(b.ws.dir, "base"+b.ws.kind, b.digest+".json")
	unpacked := filepath.Join(b.ws.dir, "base"+b.ws.kind, b.digest)
	if _, err := os.Stat(unpacked); err == nil || b.ws.spawn.userns {
		if err := b.unpackBase(ctx, unpacked); err != nil {
			return err
		}
	}
	if text, err := os.ReadFile(infoFile); err == nil && json.Unmarshal(text, &b.base) == nil {
		b.users = assignUIDs(b.File.Users, b.base.Accounts)
		return nil
	}
	rep, err := b.inspect(ctx)
	if errors.Is(err, ErrUnsupported) && b.stack.IsImage {
		b.Logger.Warn("the base cannot be mounted by loop, so it is unpacked", "err", err)
		if err := b.unpackBase(ctx, unpacked); err != nil {
			return err
		}
		rep, err = b.inspect(ctx)
	}
	if err != nil {
		return fmt.Errorf("look into the base: %w", err)
	}
	b.base = baseInfo{*rep.Accounts, rep.HasCA}
	b.users = assignUIDs(b.File.Users, b.base.Accounts)
	text, err := json.Marshal(b.base)
	if err != nil {
		return err
	}
	return whole.Write(infoFile, text, 0o600)
}

func (b *builder) inspect(ctx context.Context) (reply, error) {
	dir, err := b.ws.stepDir()
	if err != nil {
		return reply{}, err
	}
	return b.ws.spawn.do(ctx, call{req: request{Mode: modeInspect, Stack: b.stackIn(dir)}})
}

// stackIn is the stack with a scratch directory to mount it on.
func (b *builder) stackIn(dir string) stack {
	s := b.stack
	s.Lowers = slices.Clone(s.Lowers)
	s.Scratch = filepath.Join(dir, "mnt")
	return s
}

func (b *builder) unpackBase(ctx context.Context, to string) error {
	if _, err := os.Stat(to); errors.Is(err, fs.ErrNotExist) {
		tmp, err := b.ws.stepDir()
		if err != nil {
			return err
		}
		tmp = filepath.Join(tmp, "unpacked")
		b.Logger.Info("unpacking the base", "to", to)
		if _, err := b.ws.spawn.do(ctx, call{req: request{Mode: modeExtract, Target: tmp, Stack: stack{Base: b.stack.Base}}}); err != nil {
			return fmt.Errorf("unpack the base: %w", err)
		}
		if err := os.Rename(tmp, to); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("unpack the base: %w", err)
		}
	} else if err != nil {
		return err
	}
	b.stack.Base, b.stack.IsImage = to, false
	return nil
}

// resolve finds what every COPY brings, before the first step takes its time,
// and gives all errors at once, each at its word.
func (b *builder) resolve() error {
	var errs []error
	known := true // the image's accounts: no step so far can have changed them
	for i := range b.plan {
		s := &b.plan[i]
		if c := s.step.Copy; c != nil {
			set, bad := b.ctxDir.resolve(c)
			s.set = set
			for _, e := range bad {
				errs = append(errs, &ContextError{b.File.Source, s.step.Words[e.word], e.Error()})
			}
			if known && c.Chown != "" {
				if _, _, err := b.base.Accounts.owner(c.Chown, b.users); err != nil {
					errs = append(errs, &ContextError{b.File.Source, c.ChownPos, err.Error()})
				}
			}
		}
		known = known && !s.changesAccounts()
	}
	if known {
		if err := b.checkScopes(b.base.Accounts); err != nil {
			errs = append(errs, err)
		}
	}
	return joinErrors(errs)
}

// runSteps executes or re-uses each step in turn.
func (b *builder) runSteps(ctx context.Context) error {
	prev := b.digest
	for i := range b.plan {
		s := &b.plan[i]
		info := StepInfo{Index: i + 1, Total: len(b.plan), Text: firstLine(s.step.Text)}
		b.Reporter.StepStarted(info)
		begin := time.Now()
		if err := b.number(s); err != nil {
			return err
		}
		key := s.key(b.Base, prev, s.users)
		c, err := b.cachedStep(ctx, key)
		if err != nil {
			return fmt.Errorf("check the cache of step %d: %w", info.Index, err)
		}
		hit := c != nil
		if hit {
			b.cached++
		} else if c, err = b.execute(ctx, s, info, key); err != nil {
			return err
		}
		prev = resultKey(key, c.Digest)
		out := StepOutcome{Cached: hit, Duration: time.Since(begin)}
		if c.Entry != nil {
			b.push(c)
			out.LayerSize = c.Entry.Size
		}
		b.Reporter.StepDone(info, out)
	}
	return nil
}

// cachedStep gives a step that need not run, or nil.
func (b *builder) cachedStep(ctx context.Context, key string) (*cachedStep, error) {
	if b.NoCache {
		return nil, nil
	}
	c, ok := b.ws.lookup(key, b.Store)
	if !ok {
		return nil, nil
	}
	whole, err := b.intact(ctx, c)
	if err != nil || whole {
		return c, err
	}
	return nil, b.ws.forget() // so that it can be replaced
}

// intact says whether a cached difference is still what was packed. Only a
// reboot can have changed it.
func (b *builder) intact(ctx context.Context, c *cachedStep) (bool, error) {
	boot, err := bootID()
	if err != nil || c.Boot == boot || c.Entry == nil {
		return true, err
	}
	dir, err := b.ws.stepDir()
	if err != nil {
		return false, err
	}
	rep, err := b.ws.spawn.do(ctx, call{req: request{Mode: modePack, Stack: b.stackIn(dir), Pack: &packRequest{Uppers: []string{c.upper()}, Started: c.Started}}})
	if err != nil || rep.Digest != c.Digest {
		if err == nil {
			b.Logger.Warn("a cached step is damaged and runs again", "step", c.Text)
		}
		return false, err
	}
	return true, writeMeta(c.dir, c)
}

// push puts a step's difference on top of the stack.
func (b *builder) push(c *cachedStep) {
	b.stack.Lowers = slices.Insert(b.stack.Lowers, 0, c.upper())
	b.layers = slices.Insert(b.layers, 0, *c.Entry)
}

// layer packs differences and gives the image to the store.
func (b *builder) layer(ctx context.Context, dir string, st stack, p *packRequest) (*cachedStep, error) {
	p.Image = filepath.Join(dir, "layer.squashfs")
	rep, err := b.ws.spawn.do(ctx, call{req: request{Mode: modePack, Stack: st, Pack: p}})
	if err != nil {
		return nil, err
	}
	b.warnings = append(b.warnings, rep.Warnings...)
	if rep.Entries == 0 {
		return &cachedStep{}, nil
	}
	e, err := b.Store.AddImage(ctx, p.Image, "layer", "squashfs")
	if err != nil {
		return nil, fmt.Errorf("store the layer: %w", err)
	}
	return &cachedStep{Entry: &e, Bytes: rep.Bytes, Digest: rep.Digest, Started: p.Started}, nil
}

// mergeTail makes the layers past maxLayers one.
func (b *builder) mergeTail(ctx context.Context) error {
	n := len(b.layers) - b.maxLayers + 1 // layers to merge, from the top
	if n < 2 {
		return nil
	}
	key := mergeKey(b.Base, b.layers, n)
	c, ok := b.ws.lookup(key, b.Store)
	if !ok {
		dir, err := b.ws.stepDir()
		if err != nil {
			return err
		}
		st := b.stackIn(dir)
		uppers := st.Lowers[:n]
		st.Lowers = st.Lowers[n:]
		// Times are normal already: everything is as old as Epoch says.
		if c, err = b.layer(ctx, dir, st, &packRequest{Uppers: uppers, Started: time.Now().Unix()}); err != nil {
			return fmt.Errorf("merge layers: %w", err)
		}
		c.Text = fmt.Sprintf("the last %d layers of %s", n, b.File.Name)
		if err := b.ws.commit(ctx, dir, key, c); err != nil {
			return fmt.Errorf("cache merged layers: %w", err)
		}
	}
	b.layers = b.layers[n:]
	if c.Entry != nil {
		b.layers = slices.Insert(b.layers, 0, *c.Entry)
	}
	return nil
}
