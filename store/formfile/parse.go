package formfile

import (
	"cmp"
	"fmt"
	"path"
	"sort"
	"strings"
)

// Parse reads a Formfile. Name is only used in messages and kept as
// File.Source. The error, if any, is an ErrorList with everything that is
// wrong, at most MaxErrors of it; the file is nil then. Src is not kept.
func Parse(name string, src []byte) (*File, error) {
	p := newParser(name)
	if len(src) > MaxFileBytes {
		p.errorf(Pos{1, 1}, "the file is larger than %d bytes", MaxFileBytes)
		return nil, p.errs
	}
	text := strings.TrimPrefix(string(src), "\ufeff")
	if !p.checkEncoding(text) {
		return nil, p.errs
	}
	p.parse(text)
	if len(p.errs) > 0 {
		p.errs.sort()
		if p.full() {
			last := p.errs[MaxErrors-1]
			p.errs = append(p.errs[:MaxErrors-1], &Error{File: name, Line: last.Line, Col: last.Col, Msg: "too many errors; the rest is not shown"})
		}
		return nil, p.errs
	}
	return p.file, nil
}

func newParser(name string) *parser {
	return &parser{
		file: &File{
			Source: name, From: DefaultFrom, VCPU: DefaultVCPU,
			MemoryBytes: DefaultMemoryBytes, DiskBytes: DefaultDiskBytes,
			Workdir: DefaultWorkdir, Restart: DefaultRestart, Init: DefaultInit, Partition: DefaultPartition,
		},
		seen: map[string]Pos{},
	}
}

// parse reads the file until there are MaxErrors errors.
func (p *parser) parse(src string) {
	lines := p.splitLines(src)
	for i := range lines {
		if p.full() {
			return
		}
		p.instruction(&lines[i])
		p.work += lines[i].read
	}
	if !p.full() {
		p.finish()
	}
}

type parser struct {
	file *File
	errs ErrorList
	seen map[string]Pos // first place of each canonical instruction

	workdir    string // in effect
	workdirPos Pos
	sysEnv     []EnvVar
	envBytes   int
	steps      int // those that count against MaxSteps

	// For the tests: bytes read to find places, and calls of errorf.
	work, made int
}

// A note lets a call of errorf go on with .hint(…).
type note struct{ e *Error }

func (n note) hint(format string, args ...any) { n.e.Hint = fmt.Sprintf(format, args...) }

func (p *parser) errorf(pos Pos, format string, args ...any) note {
	e := &Error{File: p.file.Source, Line: pos.Line, Col: pos.Col, Msg: fmt.Sprintf(format, args...)}
	if p.made++; !p.full() {
		p.errs = append(p.errs, e)
	}
	return note{e}
}

// full says that there are as many errors as are shown: what goes over many
// words or lines stops then.
func (p *parser) full() bool { return len(p.errs) >= MaxErrors }

func (p *parser) warnf(pos Pos, format string, args ...any) {
	if len(p.file.Warnings) < MaxErrors {
		p.file.Warnings = append(p.file.Warnings, &Warning{File: p.file.Source, Line: pos.Line, Col: pos.Col, Msg: fmt.Sprintf(format, args...)})
	}
}

// An instr is one instruction being parsed.
type instr struct {
	*line
	name string // canonical
	args int    // offset of the arguments in the line, at the first one
}

func (in *instr) start() Pos { return in.pos(0) }

// rest is everything after the name, without blanks at both ends.
func (in *instr) rest() string { return strings.TrimRight(in.text[in.args:], " \t") }

type rule struct {
	parse func(*parser, *instr)
	once  bool
	usage string
}

// rules are the instructions by canonical name. An init cycle keeps this from
// being a literal: handlers suggest names from it.
var rules map[string]rule

func init() {
	rules = map[string]rule{
		"NAME":        {(*parser).parseName, true, "NAME my-app"},
		"DESCRIPTION": {(*parser).parseDescription, true, "DESCRIPTION some text"},
		"FROM":        {(*parser).parseFrom, true, "FROM debian:12"},
		"VCPU":        {(*parser).parseVCPU, true, "VCPU 2"},
		"MEM":         {(*parser).parseMem, true, "MEM 512M"},
		"DISK":        {(*parser).parseDisk, true, "DISK 5G"},
		"GPU":         {(*parser).parseGPU, false, "GPU H100:1"},
		"USER":        {(*parser).parseUser, false, `USER username:alice sudo:true ssh_authorized_keys:"ssh-ed25519 AAAA…"`},
		"COPY":        {(*parser).parseCopy, false, "COPY ./src /app/"},
		"NOCOPY":      {(*parser).parseNoCopy, true, "NOCOPY"},
		"INSTALL":     {(*parser).parseInstall, false, "INSTALL python3"},
		"ENV":         {(*parser).parseEnv, false, "ENV KEY=value"},
		"RUN":         {(*parser).parseRun, false, "RUN make install"},
		"WORKDIR":     {(*parser).parseWorkdir, false, "WORKDIR /app"},
		"EXPOSE":      {(*parser).parseExpose, false, "EXPOSE 8080/tcp"},
		"HEALTHCHECK": {(*parser).parseHealth, true, "HEALTHCHECK --interval=10s HTTP 8080/healthz"},
		"RESTART":     {(*parser).parseRestart, true, "RESTART on-failure"},
		"INIT":        {(*parser).parseInit, true, "INIT agent"},
		"REPLICAS":    {(*parser).parseReplicas, true, "REPLICAS 2"},
		"PARTITION":   {(*parser).parsePartition, true, "PARTITION keep"},
		"ENTRYPOINT":  {(*parser).parseEntrypoint, true, `ENTRYPOINT ["python3", "/app/hello.py"]`},
	}
}

// aliases are other spellings of the same instruction.
var aliases = map[string]string{
	"CPU": "VCPU", "CORES": "VCPU",
	"MEMORY": "MEM", "MBS": "MEM",
	"STORAGE": "DISK",
}

// foreign are instructions of other languages, with what to write here.
var foreign = map[string]string{
	"ADD":        "use COPY; download with RUN",
	"CMD":        "use ENTRYPOINT",
	"ARG":        "there are no build arguments; use ENV",
	"LABEL":      "use DESCRIPTION",
	"MAINTAINER": "a pack names its author by signature",
	"VOLUME":     "the whole disk of an instance is kept; size it with DISK",
	"SHELL":      "RUN uses /bin/sh; start another one in the command",
	"STOPSIGNAL": "the entrypoint gets SIGTERM",
	"ONBUILD":    "a base has no triggers",
}

func instructionNames() []string {
	names := make([]string, 0, len(rules)+len(aliases))
	for n := range rules {
		names = append(names, n)
	}
	for n := range aliases {
		names = append(names, n)
	}
	sort.Strings(names) // a tie in edit distance must not depend on map order
	return names
}

func (p *parser) instruction(l *line) {
	end := strings.IndexAny(l.text, " \t")
	if end < 0 {
		end = len(l.text)
	}
	written := l.text[:end]
	in := &instr{line: l, name: strings.ToUpper(written)}
	in.args = end + len(l.text[end:]) - len(strings.TrimLeft(l.text[end:], " \t"))
	if in.name == "MODEL" {
		p.errorf(in.start(), "MODEL is not supported: it names an entry of a model marketplace, and Formation has none").
			hint("bring the model in with COPY, or download it with RUN")
		return
	}
	if h, ok := foreign[in.name]; ok {
		p.errorf(in.start(), "%s is not a Formfile instruction", in.name).hint("%s", h)
		return
	}
	if c, ok := aliases[in.name]; ok {
		in.name = c
	}
	r, ok := rules[in.name]
	if !ok {
		p.errorf(in.start(), "unknown instruction %s%s", show(written), didYouMean(written, instructionNames()))
		if meant := suggest(written, instructionNames()); meant == "NAME" {
			p.seen[meant] = in.start() // do not call it missing, too
		}
		return
	}
	first, again := p.seen[in.name]
	if !again {
		p.seen[in.name] = in.start()
	} else if r.once {
		p.errorf(in.start(), "%s is given twice; the first is at line %d", in.name, first.Line).hint("keep one of them")
	}
	if in.rest() == "" && in.name != "NOCOPY" {
		p.errorf(in.start(), "%s needs an argument", in.name).hint("%s", r.usage)
		return
	}
	r.parse(p, in)
}

// show quotes text for a message, and cuts it when it is long.
func show(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return fmt.Sprintf("%q", s)
}

// one returns the only word of the instruction.
func (p *parser) one(in *instr) (word, bool) {
	ws, ok := p.words(in.line, in.args)
	if !ok {
		return word{}, false
	}
	if len(ws) > 1 {
		n := p.errorf(in.pos(ws[1].off), "%s takes one value", in.name)
		if strings.HasPrefix(ws[1].raw, "#") {
			n.hint("a comment needs a line of its own")
		}
		return word{}, false
	}
	return ws[0], true
}

// oneOf returns the canonical spelling of a choice.
func (p *parser) oneOf(in *instr, choices ...string) (string, bool) {
	w, ok := p.one(in)
	if !ok {
		return "", false
	}
	for _, c := range choices {
		if strings.EqualFold(c, w.text) {
			return c, true
		}
	}
	p.errorf(in.pos(w.off), "%s cannot be %s%s", in.name, show(w.text), didYouMean(w.text, choices)).
		hint("one of %s", strings.Join(choices, ", "))
	return "", false
}

// finish checks what only the whole file shows.
func (p *parser) finish() {
	f := p.file
	if _, ok := p.seen["NAME"]; !ok {
		p.errorf(Pos{1, 1}, "NAME is missing").hint("NAME my-app")
	}
	copyPos, copied := p.seen["COPY"]
	if pos, ok := p.seen["NOCOPY"]; ok && copied {
		p.errorf(pos, "NOCOPY contradicts the COPY at line %d", copyPos.Line).hint("keep one of them")
	}
	if p.workdir != "" {
		f.Workdir = p.workdir
	}
	p.resolveDests()
	if _, no := p.seen["NOCOPY"]; !no && !copied {
		p.addImplicitCopy()
	}
}

// resolveDests decides which COPY destinations are directories because a
// WORKDIR of the file says so, wherever it stands.
func (p *parser) resolveDests() {
	for i := range p.file.Steps {
		c := p.file.Steps[i].Copy
		if c == nil || c.DestIsDir {
			continue
		}
		for _, s := range p.file.Steps {
			if s.Op == OpWorkdir && within(s.Workdir, c.Dest) {
				c.DestIsDir = true
			}
		}
	}
}

// within says whether the cleaned absolute path p is dir or below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// addImplicitCopy adds "the whole context to WORKDIR" where it is of most use:
// before the first RUN, which may build it, and after every INSTALL that
// precedes that, which then stay cached when the context changes.
func (p *parser) addImplicitCopy() {
	f := p.file
	if d := Volatile(f.Workdir); d != "" {
		p.errorf(p.workdirPos, "there is no COPY, so the whole context goes to WORKDIR %s, and %s is empty whenever the instance starts", f.Workdir, d).
			hint("choose another folder, such as /app, or write NOCOPY")
		return
	}
	at := len(f.Steps)
	for i, s := range f.Steps {
		if s.Op == OpRun {
			at = i
			break
		}
	}
	step := Step{Pos: Pos{1, 1}, Words: []Pos{{1, 1}, cmp.Or(p.workdirPos, Pos{1, 1})}, Op: OpCopy, Workdir: DefaultWorkdir, Text: "COPY . " + f.Workdir,
		Copy: &Copy{Sources: []string{"."}, Dest: path.Clean(f.Workdir), DestIsDir: true, Implicit: true}}
	if at > 0 {
		step.Workdir, step.Env = f.Steps[at-1].Workdir, f.Steps[at-1].Env
	}
	f.Steps = append(f.Steps[:at], append([]Step{step}, f.Steps[at:]...)...)
	if f.Workdir == "/" {
		p.warnf(Pos{1, 1}, "there is no COPY, NOCOPY or WORKDIR: the whole context goes to /")
	}
}
