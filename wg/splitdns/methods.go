package splitdns

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// method is somebody who looks after a machine's resolver.
type method struct {
	name  string
	there func(ctx context.Context, etc string) bool
	set   func(ctx context.Context, etc string, w Want) error
	undo  func(ctx context.Context, etc, iface string) error
}

// methods are tried in this order.
var methods = []method{
	{"systemd-resolved", resolvedThere, resolvedSet, resolvedUndo},
	{"resolvconf", func(context.Context, string) bool { return has("resolvconf") }, resolvconfSet, resolvconfUndo},
}

// resolvedThere says whether programs ask systemd-resolved: it runs, and the C
// library is sent to it.
func resolvedThere(ctx context.Context, etc string) bool {
	if !has("resolvectl") || run(ctx, "", "resolvectl", "dns") != nil {
		return false
	}
	for _, s := range nameservers(etc) {
		if s == "127.0.0.53" || s == "127.0.0.54" {
			return true
		}
	}
	// What cannot be read sends nobody there.
	b, _ := os.ReadFile(filepath.Join(etc, "nsswitch.conf"))
	return nssResolve.Match(b)
}

var nssResolve = regexp.MustCompile(`(?m)^hosts:.*\bresolve\b`)

// resolvedCommands are how systemd-resolved is told. "~" makes a domain one to
// route by and not to search in.
func resolvedCommands(w Want) [][]string {
	dns := []string{"resolvectl", "dns", w.Interface}
	for _, s := range w.Servers {
		dns = append(dns, s.String())
	}
	domain := []string{"resolvectl", "domain", w.Interface}
	for _, d := range w.Domains {
		domain = append(domain, "~"+d)
	}
	return [][]string{dns, domain, {"resolvectl", "default-route", w.Interface, "false"}}
}

func resolvedSet(ctx context.Context, _ string, w Want) error {
	for _, c := range resolvedCommands(w) {
		if err := run(ctx, "", c...); err != nil {
			return err
		}
	}
	return nil
}

func resolvedUndo(ctx context.Context, _, iface string) error {
	if gone(iface) {
		return nil
	}
	return run(ctx, "", "resolvectl", "revert", iface)
}

func resolvconfSet(ctx context.Context, etc string, w Want) error {
	var text strings.Builder
	for _, s := range w.Servers {
		fmt.Fprintf(&text, "nameserver %s\n", s)
	}
	if err := run(ctx, text.String(), "resolvconf", "-a", resolvconfName(w.Interface)); err != nil {
		return err
	}
	if now := nameservers(etc); len(now) == 0 || now[0] != w.Servers[0].String() {
		return fmt.Errorf("it puts other servers before %s: %s", w.Servers[0], strings.Join(now, " "))
	}
	return nil
}

func resolvconfUndo(ctx context.Context, _, iface string) error {
	return run(ctx, "", "resolvconf", "-d", resolvconfName(iface))
}

// resolvconfName is by what a record is known. Both kinds of resolvconf sort by
// name, and put tunnels before networks; openresolv puts what has a metric, be it
// 0, last.
func resolvconfName(iface string) string { return "tun0." + iface }
