package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/formthefog/formation/store/formfile"
)

// execute runs one step and caches what it gave.
func (b *builder) execute(ctx context.Context, s *planned, info StepInfo, key string) (*cachedStep, error) {
	dir, err := b.ws.stepDir()
	if err != nil {
		return nil, err
	}
	started := time.Now().Unix()
	if s.step.Op == formfile.OpCopy {
		err = b.copyFiles(ctx, s, info, dir)
	} else {
		err = b.runCommand(ctx, s, info, dir)
	}
	if err != nil {
		return nil, err
	}
	upper := filepath.Join(dir, "fs", "upper")
	pack := &packRequest{Uppers: []string{upper}, Clean: s.step.Op != formfile.OpCopy, Install: s.step.Op == formfile.OpInstall, Started: started}
	c, err := b.layer(ctx, dir, b.stackIn(dir), pack)
	if err != nil {
		return nil, b.blame(s, info, err)
	}
	c.Text = s.step.Text
	if err := b.ws.commit(ctx, dir, key, c); err != nil {
		return nil, fmt.Errorf("cache step %d: %w", info.Index, err)
	}
	return c, nil
}

// copyFiles streams a COPY into the image.
func (b *builder) copyFiles(ctx context.Context, s *planned, info StepInfo, dir string) (err error) {
	r, wr, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(b.ctxDir.stream(wr, s.set), wr.Close()) }()
	cp := s.step.Copy
	_, err = b.ws.spawn.do(ctx, call{stdin: r, req: request{
		Mode: modeCopy, Stack: b.stackIn(dir), Work: filepath.Join(dir, "fs"),
		Copy: &copyRequest{Dest: cp.Dest, DestIsDir: cp.DestIsDir, Single: s.set.single, Chown: cp.Chown, Chmod: cp.Chmod, Users: s.users},
	}})
	r.Close() // a helper that failed reads no more: end the sender
	sendErr := <-sent
	switch {
	case err != nil:
		return b.blame(s, info, err)
	case sendErr != nil:
		return &ContextError{b.File.Source, s.step.Pos, sendErr.Error()}
	}
	return nil
}

// runCommand executes INSTALL, RUN or the final WORKDIR.
func (b *builder) runCommand(ctx context.Context, s *planned, info StepInfo, dir string) (err error) {
	run := s.request()
	network := s.step.Op == formfile.OpInstall || s.step.Op == formfile.OpRun
	if network {
		if err := b.lendHost(run); err != nil {
			return err
		}
	}
	if run.Install {
		lists, debs, release, err := b.ws.aptDirs(b.digest)
		if err != nil {
			return fmt.Errorf("package cache: %w", err)
		}
		defer closeWith(release, &err)
		run.AptLists, run.AptDebs = lists, debs
	}
	last := &tail{}
	out := io.MultiWriter(last, reporterWriter{b.Reporter})
	rep, err := b.ws.spawn.do(ctx, call{network: network, stdout: out, stderr: out, req: request{
		Mode: modeRun, Stack: b.stackIn(dir), Work: filepath.Join(dir, "fs"), Run: run,
	}})
	switch {
	case err != nil:
		return b.blame(s, info, err)
	case rep.ExitCode != 0:
		e := &StepError{Index: info.Index, Total: info.Total, Step: s.step, Pos: s.step.Pos, File: b.File.Source, ExitCode: rep.ExitCode, Tail: last.String()}
		if len(rep.Missing) > 0 {
			e.Pos = s.step.Words[rep.Missing[0]]
		}
		return e
	}
	return nil
}

// blame gives an error of a step its place: the word, if the helper knows it.
func (b *builder) blame(s *planned, info StepInfo, err error) error {
	var input *inputError
	switch {
	case errors.As(err, &input):
		return &ContextError{b.File.Source, s.place(input.at), input.msg}
	case errors.Is(err, ErrUnsupported), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return b.atStep(s, fmt.Errorf("step %d of %d: %w", info.Index, info.Total, err))
}

func (b *builder) atStep(s *planned, err error) error {
	return fmt.Errorf("%s:%d:%d: %w", b.File.Source, s.step.Pos.Line, s.step.Pos.Col, err)
}

// place is where a word of the step is; see inputError.
func (s *planned) place(at string) formfile.Pos {
	if pos, ok := s.workdirs[at]; ok {
		return pos
	}
	switch {
	case at == atChown:
		return s.step.Copy.ChownPos
	case len(s.step.Words) > 0:
		return s.step.Words[len(s.step.Words)-1]
	}
	return s.step.Pos
}

type reporterWriter struct{ r Reporter }

func (w reporterWriter) Write(p []byte) (int, error) {
	w.r.Output(p)
	return len(p), nil
}

// lendHost adds what a step on the host's network needs: name servers, proxies
// and, for a base without them, CA certificates.
func (b *builder) lendHost(run *runRequest) error {
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the host's name servers: %w", err)
	}
	run.Resolv = text
	var host []string
	defer func() { run.Env = environ(host, run.Env) }()
	for _, k := range proxyVars {
		if v := os.Getenv(k); v != "" {
			host = append(host, k+"="+v)
		}
	}
	if b.base.HasCA {
		return nil
	}
	if run.CACerts, err = os.ReadFile(caBundle); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read the host's CA certificates: %w", err)
	}
	for _, k := range caVars {
		host = append(host, k+"="+lentCA)
	}
	return nil
}
