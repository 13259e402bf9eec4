package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/ipld/go-car/v2"
)

func init() {
	register(measurement{
		Figures: []figure{{Name: "edit-moves", Unit: "%", Target: 25, AtMost: true}},
		Run:     measureEdit,
	})
}

// example is the README's; the bench runs in the repository's root.
const example = "docs/examples/hello-server"

// measureEdit builds the example, changes one line of hello.py, builds it again,
// and counts the bytes of the second pack's layers that somebody who has the
// first would have to fetch.
func measureEdit(ctx context.Context, e *env) (map[string]float64, error) {
	if e.BaseCAR == "" {
		return nil, errors.New("no base image: set FORMATION_BASE to its CAR")
	}
	form := func(args ...string) (string, error) { return runForm(ctx, e, args...) }
	source := filepath.Join(e.Dir, "hello-server")
	if err := os.CopyFS(source, os.DirFS(example)); err != nil {
		return nil, err
	}
	if _, err := form("kit", "init", "--yes"); err != nil {
		return nil, err
	}
	if _, err := form("base", "import", e.BaseCAR); err != nil {
		return nil, err
	}
	var packs [2]map[cid.Cid]int
	for i := range packs {
		if i == 1 {
			if err := editLine(filepath.Join(source, "hello.py")); err != nil {
				return nil, err
			}
		}
		id, err := form("pack", "build", source)
		if err != nil {
			return nil, err
		}
		file := filepath.Join(e.Dir, fmt.Sprintf("%d.car", i))
		if _, err := form("pack", "export", "--no-base", "-o", file, id); err != nil {
			return nil, err
		}
		if packs[i], err = leaves(file); err != nil {
			return nil, err
		}
	}
	var all, moved int
	for c, size := range packs[1] {
		all += size
		if _, had := packs[0][c]; !had {
			moved += size
		}
	}
	if all == 0 || moved == 0 {
		return nil, fmt.Errorf("the edit moved %d of %d bytes: it cannot have worked", moved, all)
	}
	e.logf("one line changed: %d of %d bytes move", moved, all)
	return map[string]float64{"edit-moves": 100 * float64(moved) / float64(all)}, nil
}

func editLine(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	edited := bytes.Replace(text, []byte("hello from"), []byte("greetings from"), 1)
	if bytes.Equal(text, edited) {
		return fmt.Errorf("%s has no line to change", file)
	}
	return os.WriteFile(file, edited, 0o644)
}

// leaves are the raw blocks of a CAR and their sizes: the images' chunks.
func leaves(file string) (map[cid.Cid]int, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	blocks, err := car.NewBlockReader(f)
	if err != nil {
		return nil, err
	}
	found := map[cid.Cid]int{}
	for {
		b, err := blocks.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if b.Cid().Type() == cid.Raw {
			found[b.Cid()] = len(b.RawData())
		}
	}
}

// runForm runs form with a kit of its own in e.Dir and gives the last line of its
// answer.
func runForm(ctx context.Context, e *env, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(e.Bin, "form"), args...)
	cmd.Env = append(os.Environ(),
		"XDG_CONFIG_HOME="+filepath.Join(e.Dir, "config"), "XDG_DATA_HOME="+filepath.Join(e.Dir, "data"),
		"XDG_CACHE_HOME="+filepath.Join(e.Dir, "cache"), "FORM_PASSWORD=bench", "FORM_API=")
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("form %s: %w\n%s", strings.Join(args, " "), err, &talk)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	return lines[len(lines)-1], nil
}
