package formfile

import (
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	baseName = regexp.MustCompile(`^[a-z0-9]+([._/-][a-z0-9]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$`)
	cidText  = regexp.MustCompile(`^b[a-z2-7]{58,100}$`)
	gpuText  = regexp.MustCompile(`^([^:]+)(?::(.*))?$`)
)

func (p *parser) parseName(in *instr) {
	w, ok := p.one(in)
	if !ok {
		return
	}
	if !dnsLabel.MatchString(w.text) {
		n := p.errorf(in.pos(w.off), "NAME %s is not a DNS label: 1–63 characters of a–z, 0–9 and -, no - at either end", show(w.text))
		if s := toLabel(w.text); s != "" {
			n.hint("NAME %s", s)
		}
		return
	}
	p.file.Name = w.text
}

// toLabel makes the DNS label nearest to s, or "".
func toLabel(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case strings.ContainsRune("-_. /", r):
			return '-'
		}
		return -1
	}, s)
	s = strings.Trim(s[:min(len(s), 63)], "-")
	if !dnsLabel.MatchString(s) {
		return ""
	}
	return s
}

func (p *parser) parseDescription(in *instr) {
	text := in.rest()
	if len(text) > MaxValueBytes {
		p.errorf(in.pos(in.args), "DESCRIPTION is longer than %d bytes", MaxValueBytes)
		return
	}
	if len(text) > 1 && text[0] == '"' && text[len(text)-1] == '"' {
		text = text[1 : len(text)-1]
	}
	p.file.Description = text
}

func (p *parser) parseFrom(in *instr) {
	w, ok := p.one(in)
	if !ok {
		return
	}
	if !cidText.MatchString(w.text) && (!baseName.MatchString(w.text) || len(w.text) > 255) {
		p.errorf(in.pos(w.off), "FROM %s is neither a base name nor a CID", show(w.text)).hint("FROM debian:12")
		return
	}
	p.file.From = w.text
}

// number parses a decimal number and checks its range.
func (p *parser) number(pos Pos, what, text string, least, most int) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		p.errorf(pos, "%s must be a whole number from %d to %d, not %s", what, least, most, show(text))
		return 0, false
	}
	if err != nil || n < uint64(least) || n > uint64(most) {
		p.errorf(pos, "%s must be from %d to %d, not %s", what, least, most, text[:min(len(text), 30)])
		return 0, false
	}
	return int(n), true
}

func (p *parser) parseVCPU(in *instr) {
	if w, ok := p.one(in); ok {
		if n, ok := p.number(in.pos(w.off), in.name, w.text, MinVCPU, MaxVCPU); ok {
			p.file.VCPU = n
		}
	}
}

func (p *parser) parseReplicas(in *instr) {
	if w, ok := p.one(in); ok {
		if n, ok := p.number(in.pos(w.off), in.name, w.text, 1, MaxReplicas); ok {
			p.file.Replicas = n
		}
	}
}

func (p *parser) parseMem(in *instr) {
	if n, ok := p.size(in, "KMG", MiB, MinMemoryBytes, MaxMemoryBytes, "128M to 256000M"); ok {
		p.file.MemoryBytes = n
	}
}

func (p *parser) parseDisk(in *instr) {
	if n, ok := p.size(in, "MGT", GiB, MinDiskBytes, MaxDiskBytes, "1G to 65535G"); ok {
		p.file.DiskBytes = n
	}
}

var units = map[byte]uint64{'K': KiB, 'M': MiB, 'G': GiB, 'T': TiB}

// size parses "n" or "n" with one of the unit letters, in bytes.
func (p *parser) size(in *instr, letters string, bare, least, most uint64, span string) (uint64, bool) {
	w, ok := p.one(in)
	if !ok {
		return 0, false
	}
	pos := in.pos(w.off)
	digits, unit := w.text, bare
	if i := strings.IndexFunc(w.text, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = w.text[:i]
		suffix := strings.ToUpper(w.text[i:])
		if digits == "" || len(suffix) != 1 || !strings.Contains(letters, suffix) {
			p.errorf(pos, "%s %s is not a size: a whole number, then nothing or one of %s", in.name, show(w.text), strings.Join(strings.Split(letters, ""), ", ")).
				hint("%s", rules[in.name].usage)
			return 0, false
		}
		unit = units[suffix[0]]
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > most/unit || n*unit < least {
		p.errorf(pos, "%s must be from %s, not %s", in.name, span, w.text[:min(len(w.text), 30)])
		return 0, false
	}
	if n*unit%MiB != 0 {
		p.errorf(pos, "%s must be a whole number of MiB, not %s", in.name, w.text)
		return 0, false
	}
	return n * unit, true
}

func (p *parser) parseGPU(in *instr) {
	w, ok := p.one(in)
	if !ok {
		return
	}
	m := gpuText.FindStringSubmatch(w.text)
	if m == nil {
		p.errorf(in.pos(w.off), "GPU %s is not MODEL or MODEL:COUNT", show(w.text)).hint("GPU H100:1")
		return
	}
	g := GPU{Model: strings.ToUpper(m[1]), Count: 1}
	known := false
	for _, k := range GPUModels {
		known = known || k == g.Model
	}
	if !known {
		p.errorf(in.pos(w.off), "unknown GPU model %s%s", show(m[1]), didYouMean(m[1], GPUModels)).
			hint("one of %s", strings.Join(GPUModels, ", "))
		return
	}
	if strings.Contains(w.text, ":") {
		if g.Count, ok = p.number(in.pos(w.at(len(m[1])+1)), "the number of GPUs", m[2], 1, MaxGPUCount); !ok {
			return
		}
	}
	for _, have := range p.file.GPUs {
		if have.Model == g.Model {
			p.errorf(in.pos(w.off), "GPU %s is given twice", g.Model).hint("GPU %s:%d", g.Model, min(MaxGPUCount, have.Count+g.Count))
			return
		}
	}
	p.file.GPUs = append(p.file.GPUs, g)
}

func (p *parser) parseRestart(in *instr) {
	if s, ok := p.oneOf(in, "always", "on-failure", "never"); ok {
		p.file.Restart = s
	}
}

func (p *parser) parseInit(in *instr) {
	s, ok := p.oneOf(in, DefaultInit, "systemd")
	if !ok {
		return
	}
	p.file.Init = s
	if s == "systemd" {
		p.warnf(in.pos(in.args), "INIT systemd is not there yet: an instance of this pack fails; use INIT agent and ENTRYPOINT")
	}
}

func (p *parser) parsePartition(in *instr) {
	if s, ok := p.oneOf(in, "keep", "stop-minority", "fence"); ok {
		p.file.Partition = s
	}
}

func (p *parser) parseNoCopy(in *instr) {
	if in.rest() != "" {
		p.errorf(in.pos(in.args), "NOCOPY takes no argument").hint("keep files out with .formignore")
		return
	}
	p.file.NoCopy = true
}

func (p *parser) parseExpose(in *instr) {
	ws, ok := p.words(in.line, in.args)
	if !ok {
		return
	}
	public := false
	if last := ws[len(ws)-1]; strings.EqualFold(last.text, "public") {
		public, ws = true, ws[:len(ws)-1]
		if len(ws) == 0 {
			p.errorf(in.start(), "EXPOSE needs a port").hint("EXPOSE 8080/tcp public")
			return
		}
	}
	for _, w := range ws {
		if p.full() {
			return
		}
		if strings.EqualFold(w.text, "public") {
			p.errorf(in.pos(w.off), "public stands once, after the ports it makes public").hint("EXPOSE 8080/tcp public")
			continue
		}
		p.exposeOne(in, w, public)
	}
}

func (p *parser) exposeOne(in *instr, w word, public bool) {
	pos := in.pos(w.off)
	num, proto, hasProto := strings.Cut(w.text, "/")
	if strings.Contains(num, ":") {
		p.errorf(pos, "EXPOSE %s: a port of the instance is not mapped to another", show(w.text)).hint("EXPOSE 8080/tcp")
		return
	}
	if num != "" && strings.Trim(num, "0123456789") != "" && !hasProto {
		p.errorf(pos, "EXPOSE takes a port, perhaps /tcp or /udp, perhaps public; not %s%s", show(w.text), didYouMean(w.text, []string{"public"}))
		return
	}
	n, ok := p.number(pos, "a port", num, 1, 65535)
	if !ok {
		return
	}
	if !hasProto {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	if proto != "tcp" && proto != "udp" {
		p.errorf(in.pos(w.at(len(num)+1)), "unknown protocol %s%s", show(proto), didYouMean(proto, []string{"tcp", "udp"})).hint("tcp or udp")
		return
	}
	for _, have := range p.file.Expose {
		if have.Port == n && have.Proto == proto {
			p.errorf(pos, "port %d/%s is exposed twice", n, proto)
			return
		}
	}
	if len(p.file.Expose) == MaxExpose {
		p.errorf(pos, "more than %d ports", MaxExpose)
		return
	}
	p.file.Expose = append(p.file.Expose, Port{n, proto, public})
}

func (p *parser) parseEntrypoint(in *instr) {
	argv, ok := p.command(in, in.args, true)
	if !ok {
		return
	}
	if len(argv) > MaxEntrypoint {
		p.errorf(in.pos(in.args), "ENTRYPOINT has more than %d words", MaxEntrypoint)
		return
	}
	for _, a := range argv {
		if len(a) > MaxValueBytes {
			p.errorf(in.pos(in.args), "a word of ENTRYPOINT is longer than %d bytes", MaxValueBytes)
			return
		}
	}
	p.file.Entrypoint = argv
}

// command parses the exec form (a JSON array of strings) or the shell form of
// a command that starts at off. With strict, text that starts with [ must be
// the exec form; without, "[ -f x ] && y" is a shell command.
func (p *parser) command(in *instr, off int, strict bool) ([]string, bool) {
	text := strings.TrimRight(in.text[off:], " \t")
	if !strings.HasPrefix(text, "[") {
		return []string{"/bin/sh", "-c", text}, true
	}
	var argv []string
	err := json.Unmarshal([]byte(text), &argv)
	if null := nullAt(text); err == nil && null >= 0 {
		p.errorf(in.pos(off+null), "%s: null is not a word", in.name).hint("every word in double quotes")
		return nil, false
	}
	switch {
	case err == nil && len(argv) > 0 && argv[0] != "":
		for _, a := range argv {
			if strings.ContainsRune(a, 0) {
				p.errorf(in.pos(off), "%s: a word holds a NUL byte", in.name)
				return nil, false
			}
		}
		return argv, true
	case err != nil && !strict:
		return []string{"/bin/sh", "-c", text}, true
	case err == nil:
		p.errorf(in.pos(off), "%s names no program", in.name).hint("%s", rules[in.name].usage)
		return nil, false
	}
	at := 0
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if errors.As(err, &syntax) {
		at = int(syntax.Offset) - 1
	} else if errors.As(err, &kind) {
		at = int(kind.Offset) - 1
	}
	p.errorf(in.pos(off+max(0, min(at, len(text)-1))), "%s: not a JSON array of strings: %s", in.name, strings.TrimPrefix(err.Error(), "json: ")).
		hint(`every word in double quotes, commas between: ["python3", "/app/hello.py"]`)
	return nil, false
}

// nullAt is where the first null of a JSON array of strings and nulls is, or -1.
func nullAt(text string) int {
	const null = "null"
	for dec := json.NewDecoder(strings.NewReader(text)); ; {
		switch tok, err := dec.Token(); {
		case err != nil:
			return -1
		case tok == nil:
			return int(dec.InputOffset()) - len(null)
		}
	}
}

// parseDuration parses "10s", "1m30s" or bare seconds.
func parseDuration(s string) (time.Duration, bool) {
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true
	}
	d, err := time.ParseDuration(s)
	return d, err == nil
}
