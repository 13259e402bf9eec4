package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Write writes a recording, a line each.
func (r *Recording) Write(w io.Writer) error {
	buf := bufio.NewWriter(w)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(r.Header); err != nil {
		return err
	}
	for i := range r.Lines {
		if err := e.Encode(&r.Lines[i]); err != nil {
			return err
		}
	}
	return buf.Flush()
}

// Read reads what Write has written, and refuses anything else.
func Read(from io.Reader) (*Recording, error) {
	in := bufio.NewScanner(from)
	in.Buffer(make([]byte, 0, 64<<10), maxLine)
	r := &Recording{}
	for n := 0; in.Scan(); n++ {
		if n > maxLines {
			return nil, fmt.Errorf("line %d: more than %d lines", n+1, maxLines)
		}
		if len(r.Lines) > 0 && r.Lines[len(r.Lines)-1].End != nil {
			return nil, fmt.Errorf("line %d: after the end", n+1)
		}
		var err error
		if n == 0 {
			err = r.readHeader(in.Bytes())
		} else {
			err = r.readLine(in.Bytes())
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if n := len(r.Lines); n == 0 || r.Lines[n-1].End == nil {
		return nil, errors.New("the recording has no end")
	}
	return r, nil
}

// strict reads one JSON value without anything unknown in it or after it.
func strict(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the value")
	}
	return nil
}

func (r *Recording) readHeader(raw []byte) error {
	if err := strict(raw, &r.Header); err != nil {
		return err
	}
	h := &r.Header
	switch {
	case h.Version != Version:
		return fmt.Errorf("format %d, this reads %d", h.Version, Version)
	case h.Nodes < 1 || h.Nodes > MaxNodes:
		return fmt.Errorf("%d nodes", h.Nodes)
	case len(h.Scenario) > maxText || len(h.About) > maxText:
		return errors.New("a text is too long")
	case len(h.Regions) > maxRegions || len(h.Classes) > maxClasses:
		return errors.New("too many regions or classes")
	case len(h.At) != 0 && len(h.At) != h.Nodes:
		return fmt.Errorf("%d places of %d nodes", len(h.At), h.Nodes)
	}
	for k, of := range h.Unknown {
		if !slices.Contains(Unknowns, of) || slices.Contains(h.Unknown[:k], of) {
			return fmt.Errorf("unknown: %q", of)
		}
	}
	for _, at := range h.At {
		if at < 0 || at >= len(h.Regions) {
			return fmt.Errorf("region %d of %d", at, len(h.Regions))
		}
	}
	for _, g := range h.Regions {
		if len(g.Name) > maxText || !(g.Lat >= -90 && g.Lat <= 90) || !(g.Lon >= -180 && g.Lon <= 180) {
			return errors.New("a region that is not on Earth")
		}
	}
	return nil
}

func (r *Recording) readLine(raw []byte) error {
	var l Line
	if err := strict(raw, &l); err != nil {
		return err
	}
	if l.At < 0 || len(r.Lines) > 0 && l.At < r.Lines[len(r.Lines)-1].At {
		return errors.New("before the line before")
	}
	if l.kind() == "" {
		return errors.New("not one thing that happened")
	}
	if err := r.check(&l); err != nil {
		return err
	}
	r.Lines = append(r.Lines, l)
	return nil
}

// check holds a line to the header and the bounds.
func (r *Recording) check(l *Line) error {
	nodes := func(ns ...int) error {
		for _, n := range ns {
			if n < 0 || n >= r.Nodes {
				return fmt.Errorf("node %d of %d", n, r.Nodes)
			}
		}
		return nil
	}
	switch {
	case l.Node != nil:
		for _, is := range l.Node.Is {
			if !slices.Contains(States, is) {
				return fmt.Errorf("%q is no state", is)
			}
		}
		if len(l.Node.Is) > len(States) {
			return errors.New("a state twice")
		}
		return nodes(l.Node.N)
	case l.Net != nil:
		return r.checkNet(l.Net, nodes)
	case l.Step != nil:
		if l.Step.N < 0 || len(l.Step.Text) > maxText {
			return errors.New("a step that is none")
		}
		return nodes(max(0, l.Step.Node))
	case l.Replica != nil:
		if l.Replica.Slot < 0 || len(l.Replica.Instance) > maxText || len(l.Replica.Name) > maxText {
			return errors.New("a replica that is none")
		}
		return nodes(l.Replica.Node)
	case l.Statement != nil:
		return nodes(l.Statement.By)
	case l.Broken != nil:
		if len(l.Broken.Of) > maxText || len(l.Broken.What) > maxText {
			return errors.New("a text is too long")
		}
	case l.Traffic != nil:
		if len(l.Traffic.Messages) != len(r.Classes) || len(l.Traffic.Bytes) != len(r.Classes) {
			return fmt.Errorf("not %d classes of traffic", len(r.Classes))
		}
	}
	return nil
}

func (r *Recording) checkNet(n *Net, nodes func(...int) error) error {
	if len(n.Cuts) > maxCuts {
		return fmt.Errorf("%d cuts, at most %d", len(n.Cuts), maxCuts)
	}
	all := 0
	for _, side := range n.Sides {
		if all += len(side); all > r.Nodes {
			return errors.New("a node on two sides")
		}
		if err := nodes(side...); err != nil {
			return err
		}
	}
	for _, c := range n.Cuts {
		if err := nodes(c[:]...); err != nil {
			return err
		}
	}
	return nil
}
