package formfile

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	// Debian policy 5.6.1, with an optional architecture, version or release.
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?([=/][A-Za-z0-9.+:~-]+)?$`)
	envKey      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	octalMode   = regexp.MustCompile(`^[0-7]{3,4}$`)
	ownerName   = regexp.MustCompile(`^([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})(:([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9}))?$`)
	secretLike  = regexp.MustCompile(`(?i)(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|PRIVATE_?KEY)`)
)

// addStep appends a step with the state now in effect.
func (p *parser) addStep(in *instr, s Step) {
	if s.Op != OpEnv {
		if p.steps++; p.steps > MaxSteps {
			p.errorf(in.start(), "more than %d steps", MaxSteps).hint("join RUN commands with && and INSTALL packages on one line")
			return
		}
	}
	s.Pos = in.start()
	s.Text = in.name + " " + in.rest()
	if s.Op == OpInstall {
		s.Text = in.name + " " + strings.Join(s.Install, " ")
	}
	s.Workdir = p.workdir
	if s.Workdir == "" {
		s.Workdir = DefaultWorkdir
	}
	s.Env = slices.Clip(p.sysEnv)
	p.file.Steps = append(p.file.Steps, s)
}

// options takes the leading --name=value words of an instruction.
func (p *parser) options(in *instr, ws []word, known ...string) (opts map[string]word, rest []word, ok bool) {
	opts, ok = map[string]word{}, true
	for len(ws) > 0 && strings.HasPrefix(ws[0].raw, "--") && !p.full() {
		w := ws[0]
		ws = ws[1:]
		name, value, has := strings.Cut(w.text[2:], "=")
		pos := in.pos(w.off)
		switch {
		case !slices.Contains(known, name):
			p.errorf(pos, "%s has no option %s%s", in.name, show("--"+name), didYouMean("--"+name, withDashes(known))).
				hint("%s takes %s", in.name, strings.Join(withDashes(known), ", "))
			ok = false
		case !has || value == "":
			p.errorf(pos, "--%s needs a value", name).hint("--%s=…", name)
			ok = false
		default:
			if _, twice := opts[name]; twice {
				p.errorf(pos, "--%s is given twice", name)
				ok = false
			}
			v := w.cut(len("--" + name + "="))
			if strings.HasPrefix(v.raw, `"`) {
				v.off++ // the value is what stands in the quotes
			}
			opts[name] = v
		}
	}
	return opts, ws, ok
}

func withDashes(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = "--" + n
	}
	return out
}

func (p *parser) parseCopy(in *instr) {
	ws, ok := p.words(in.line, in.args)
	if !ok {
		return
	}
	opts, ws, ok := p.options(in, ws, "chown", "chmod")
	c := &Copy{}
	if w, has := opts["chown"]; has {
		c.Chown, c.ChownPos = w.text, in.pos(w.off)
		if !ownerName.MatchString(w.text) {
			p.errorf(in.pos(w.off), "--chown=%s is not user or user:group", show(w.text)).hint("--chown=bigdog:bigdog")
			ok = false
		}
	}
	if w, has := opts["chmod"]; has {
		mode, err := strconv.ParseUint(w.text, 8, 12)
		if err != nil || !octalMode.MatchString(w.text) {
			p.errorf(in.pos(w.off), "--chmod=%s is not an octal mode", show(w.text)).hint("--chmod=755")
			ok = false
		}
		m := uint32(mode)
		c.Chmod = &m
	}
	if len(ws) < 2 {
		p.errorf(in.start(), "COPY needs a source and a destination").hint("COPY ./src /app/")
		return
	}
	srcs, dest := ws[:len(ws)-1], ws[len(ws)-1]
	if len(srcs) > MaxSources {
		p.errorf(in.start(), "more than %d sources", MaxSources).hint("copy a directory, or use a glob")
		return
	}
	for _, w := range srcs {
		s, good := p.copySource(in, w)
		ok = ok && good
		c.Sources = append(c.Sources, s)
	}
	if dest.text == "" {
		p.errorf(in.pos(dest.off), "the destination of COPY is empty")
		return
	}
	if !ok {
		return
	}
	c.DestIsDir = strings.HasSuffix(dest.text, "/") || path.Base(dest.text) == "." || path.Base(dest.text) == ".." || len(srcs) > 1
	c.Dest = dest.text
	if !path.IsAbs(c.Dest) {
		c.Dest = path.Join("/", p.workdir, c.Dest)
	}
	c.Dest = path.Clean(c.Dest)
	if d := Volatile(c.Dest); d != "" {
		p.errorf(in.pos(dest.off), "COPY to %s: %s is empty whenever the instance starts", show(c.Dest), d).hint("copy to another folder, such as /app")
		return
	}
	p.addStep(in, Step{Op: OpCopy, Copy: c, Words: places(in, ws)})
}

func places(in *instr, ws []word) []Pos {
	out := make([]Pos, len(ws))
	for i, w := range ws {
		out[i] = in.pos(w.off)
	}
	return out
}

// copySource checks one source: relative, inside the context, a valid glob.
func (p *parser) copySource(in *instr, w word) (string, bool) {
	pos := in.pos(w.off)
	clean := path.Clean(w.text)
	switch {
	case w.text == "":
		p.errorf(pos, "a source of COPY is empty")
	case strings.Contains(w.text, "://"):
		p.errorf(pos, "COPY takes files of the context, not %s", show(w.text)).hint("download with RUN")
	case path.IsAbs(w.text):
		p.errorf(pos, "COPY %s: the source is outside the context", show(w.text)).hint("sources are relative to the directory that is built")
	case clean == ".." || strings.HasPrefix(clean, "../"):
		p.errorf(pos, "COPY %s: the source leaves the context", show(w.text)).hint("move the file below the directory that is built")
	default:
		if _, err := path.Match(clean, ""); err != nil {
			p.errorf(pos, "COPY %s: malformed glob", show(w.text)).hint(`close the [, or write \[ for the character`)
			return "", false
		}
		return clean, true
	}
	return "", false
}

func (p *parser) parseInstall(in *instr) {
	ws, ok := p.words(in.line, in.args)
	if !ok {
		return
	}
	if len(ws) > MaxPackages {
		p.errorf(in.start(), "more than %d packages", MaxPackages)
		return
	}
	var pkgs []string
	var at []Pos
	for _, w := range ws {
		if !packageName.MatchString(w.text) || len(w.text) > 256 {
			n := p.errorf(in.pos(w.off), "%s is not a package name", show(w.text))
			if strings.HasPrefix(w.text, "-") {
				n.hint("INSTALL takes no options; recommended packages are left out, questions get their default")
			} else if l := strings.ToLower(w.text); packageName.MatchString(l) {
				n.hint("INSTALL %s", l)
			}
			ok = false
			continue
		}
		if aptOperator(w.text) {
			p.errorf(in.pos(w.off), "%s: apt takes the sign at the end for an order, to remove or to install", show(w.text)).hint("INSTALL %s", strings.TrimRight(w.text, "+-"))
			ok = false
			continue
		}
		if !slices.Contains(pkgs, w.text) {
			pkgs, at = append(pkgs, w.text), append(at, in.pos(w.off))
		}
	}
	if ok {
		p.addStep(in, Step{Op: OpInstall, Install: pkgs, Words: at})
	}
}

// aptOperator says whether apt may read the end of the word as "remove" or
// "install". Names such as g++ are no such case: apt looks for those first, and
// the builder makes sure that they exist.
func aptOperator(s string) bool {
	plain := !strings.ContainsAny(s, ":=/")
	return strings.HasSuffix(s, "-") || strings.HasSuffix(s, "+") && !(plain && strings.HasSuffix(s, "++"))
}

func (p *parser) parseRun(in *instr) {
	if len(in.rest()) > MaxRunBytes {
		p.errorf(in.start(), "RUN is longer than %d bytes", MaxRunBytes).hint("COPY a script and RUN it")
		return
	}
	if argv, ok := p.command(in, in.args, false); ok {
		p.addStep(in, Step{Op: OpRun, Run: argv})
	}
}

func (p *parser) parseWorkdir(in *instr) {
	w, ok := p.one(in)
	if !ok {
		return
	}
	pos := in.pos(w.off)
	switch {
	case !path.IsAbs(w.text):
		p.errorf(pos, "WORKDIR %s is not an absolute path", show(w.text)).hint("WORKDIR /%s", path.Clean(w.text))
		return
	case slices.Contains(strings.Split(w.text, "/"), ".."):
		p.errorf(pos, "WORKDIR %s holds ..", show(w.text)).hint("WORKDIR %s", path.Clean(w.text))
		return
	case len(w.text) > MaxValueBytes:
		p.errorf(pos, "WORKDIR is longer than %d bytes", MaxValueBytes)
		return
	}
	p.workdir, p.workdirPos = path.Clean(w.text), pos
	p.addStep(in, Step{Op: OpWorkdir, Words: []Pos{pos}})
}

func (p *parser) parseEnv(in *instr) {
	ws, ok := p.words(in.line, in.args)
	if !ok {
		return
	}
	opts, ws, ok := p.options(in, ws, "scope")
	if !ok {
		return
	}
	scope, at := "system", Pos{}
	if w, has := opts["scope"]; has {
		at = in.pos(w.off)
		if scope, ok = p.scope(in, w); !ok {
			return
		}
	}
	if len(ws) == 0 {
		p.errorf(in.start(), "ENV needs KEY=value").hint("ENV KEY=value")
		return
	}
	var vars []EnvVar
	for i, w := range ws {
		if p.full() {
			return
		}
		key, value, has := strings.Cut(w.text, "=")
		pos := in.pos(w.off)
		switch {
		case !has && i == 1 && len(ws) == 2 && envKey.MatchString(ws[0].text):
			// reported with the first word
		case !has:
			n := p.errorf(pos, "ENV %s is not KEY=value", show(w.text))
			if i == 0 && len(ws) == 2 {
				n.hint("ENV %s=%s", w.raw, ws[1].raw)
			} else {
				n.hint(`a value with blanks needs double quotes: ENV KEY="some words"`)
			}
		case !envKey.MatchString(key):
			p.errorf(pos, "ENV %s: the key must be letters, digits and _, and not start with a digit", show(key))
		case len(key) > 255 || len(value) > MaxValueBytes:
			p.errorf(pos, "ENV %s is longer than %d bytes", show(key), MaxValueBytes)
		default:
			vars = append(vars, EnvVar{scope, key, value, at})
			if strings.Contains(value, "$") {
				p.warnf(pos, "ENV %s: variables are not expanded; $ stays as it is", key)
			}
			if value != "" && secretLike.MatchString(key) {
				p.warnf(pos, "ENV %s looks like a secret, and every member can read a pack: use form secret set", key)
			}
		}
	}
	p.addEnv(in, vars)
}

// maxEnvBytes keeps the environment well inside a pack's root node.
const maxEnvBytes = 32 << 10

func (p *parser) addEnv(in *instr, vars []EnvVar) {
	for _, v := range vars {
		p.envBytes += len(v.Key) + len(v.Value)
	}
	if len(p.file.Env)+len(vars) > MaxEnv {
		p.errorf(in.start(), "more than %d variables", MaxEnv)
		return
	}
	if p.envBytes > maxEnvBytes {
		p.errorf(in.start(), "the environment is larger than %d bytes", maxEnvBytes).hint("put it in a file and COPY it")
		return
	}
	p.file.Env = append(p.file.Env, vars...)
	for _, v := range vars {
		if v.Scope == "system" {
			p.sysEnv = append(p.sysEnv, v)
		}
	}
	if len(vars) > 0 {
		p.addStep(in, Step{Op: OpEnv})
	}
}

func (p *parser) scope(in *instr, w word) (string, bool) {
	kind, name, named := strings.Cut(w.text, ":")
	kinds := []string{"system", "user", "service"}
	switch {
	case kind == "system" && !named:
		return kind, true
	case (kind == "user" || kind == "service") && userName.MatchString(name):
		return w.text, true
	case kind == "user" || kind == "service":
		p.errorf(in.pos(w.off), "--scope=%s needs a name", kind).hint("--scope=%s:NAME", kind)
	default:
		p.errorf(in.pos(w.off), "unknown scope %s%s", show(w.text), didYouMean(kind, kinds)).hint("system, user:NAME or service:NAME")
	}
	return "", false
}
