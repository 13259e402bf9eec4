package formfile

import (
	"net"
	"net/url"
	"strings"
	"time"
)

// Defaults and ranges of HEALTHCHECK.
const (
	defaultInterval = 10 * time.Second
	defaultTimeout  = 5 * time.Second
	defaultRetries  = 3
)

// parseHealth parses
//
//	HEALTHCHECK [options] CMD command          shell or exec form
//	HEALTHCHECK [options] TCP [host:]port
//	HEALTHCHECK [options] HTTP port[/path] | http://localhost:port/path
//
// where the host can only be the instance itself.
func (p *parser) parseHealth(in *instr) {
	h := &Health{Interval: defaultInterval, Timeout: defaultTimeout, Retries: defaultRetries}
	// CMD takes free text, so only the words before the kind are split.
	off := in.args
	var opts []word
	for strings.HasPrefix(in.text[off:], "--") {
		w, end, ok := p.word(in.line, off)
		if !ok {
			return
		}
		opts = append(opts, w)
		off = end + len(in.text[end:]) - len(strings.TrimLeft(in.text[end:], " \t"))
	}
	ok := p.healthOptions(in, h, opts)
	kindEnd := strings.IndexAny(in.text[off:], " \t")
	if kindEnd < 0 {
		kindEnd = len(in.text) - off
	}
	kind := in.text[off : off+kindEnd]
	arg := off + kindEnd
	arg += len(in.text[arg:]) - len(strings.TrimLeft(in.text[arg:], " \t"))
	if kind == "" {
		p.errorf(in.start(), "HEALTHCHECK needs CMD, TCP or HTTP").hint("%s", rules["HEALTHCHECK"].usage)
		return
	}
	h.Kind = strings.ToLower(kind)
	if h.Kind != "cmd" && h.Kind != "tcp" && h.Kind != "http" {
		p.errorf(in.pos(off), "HEALTHCHECK cannot be %s%s", show(kind), didYouMean(kind, []string{"CMD", "TCP", "HTTP"})).hint("CMD, TCP or HTTP")
		return
	}
	if strings.TrimRight(in.text[arg:], " \t") == "" {
		p.errorf(in.pos(off), "HEALTHCHECK %s needs an argument", strings.ToUpper(kind)).hint("%s", rules["HEALTHCHECK"].usage)
		return
	}
	if h.Kind == "cmd" {
		argv, good := p.command(in, arg, true)
		ok = ok && good
		if len(strings.Join(argv, " ")) > MaxValueBytes {
			p.errorf(in.pos(arg), "HEALTHCHECK CMD is longer than %d bytes", MaxValueBytes)
			return
		}
		h.Command = argv
	} else {
		ok = p.healthTarget(in, h, arg) && ok
	}
	if ok {
		p.file.Health = h
	}
}

func (p *parser) healthOptions(in *instr, h *Health, ws []word) bool {
	opts, _, ok := p.options(in, ws, "interval", "timeout", "retries")
	durations := []struct {
		name        string
		to          *time.Duration
		least, most time.Duration
	}{
		{"interval", &h.Interval, time.Second, time.Hour},
		{"timeout", &h.Timeout, 100 * time.Millisecond, 10 * time.Minute},
	}
	for _, d := range durations {
		w, has := opts[d.name]
		if !has {
			continue
		}
		v, good := parseDuration(w.text)
		if !good || v < d.least || v > d.most {
			p.errorf(in.pos(w.off), "--%s must be a duration from %s to %s, not %s", d.name, d.least, d.most, show(w.text)).hint("--%s=10s", d.name)
			ok = false
		}
		*d.to = v
	}
	if w, has := opts["retries"]; has {
		n, good := p.number(in.pos(w.off), "--retries", w.text, 1, 100)
		h.Retries, ok = n, ok && good
	}
	return ok
}

// healthTarget parses what TCP and HTTP check.
func (p *parser) healthTarget(in *instr, h *Health, off int) bool {
	ws, ok := p.words(in.line, off)
	if !ok {
		return false
	}
	if len(ws) > 2 || len(ws) == 2 && (h.Kind == "tcp" || !strings.HasPrefix(ws[1].text, "/")) {
		p.errorf(in.pos(ws[1].off), "HEALTHCHECK %s takes one target", strings.ToUpper(h.Kind)).hint("%s", rules["HEALTHCHECK"].usage)
		return false
	}
	target := ws[0].text
	if h.Kind == "http" {
		h.Path = "/"
		if u, err := url.Parse(target); err == nil && u.Scheme == "http" {
			target = strings.TrimPrefix(target, "http://")
			if u.Port() == "" {
				target = strings.Replace(target, u.Host, u.Host+":80", 1)
			}
		}
		if i := strings.IndexByte(target, '/'); i >= 0 {
			target, h.Path = target[:i], target[i:]
		}
		if len(ws) == 2 {
			h.Path = ws[1].text
		}
		if len(h.Path) > 1024 || strings.ContainsAny(h.Path, " \t\"") {
			p.errorf(in.pos(ws[0].off), "HEALTHCHECK HTTP: the path must be at most 1024 characters without blanks and quotes")
			return false
		}
	}
	if host, port, err := net.SplitHostPort(target); err == nil {
		if host != "" && host != "localhost" && host != "127.0.0.1" && host != "::1" {
			p.errorf(in.pos(ws[0].off), "HEALTHCHECK looks only at the instance itself, not at %s", show(host)).hint("%s", rules["HEALTHCHECK"].usage)
			return false
		}
		target = port
	}
	n, good := p.number(in.pos(ws[0].off), "the port", target, 1, 65535)
	h.Port = n
	return good
}
