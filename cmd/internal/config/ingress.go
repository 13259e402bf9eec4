package config

import (
	"fmt"
	"net/mail"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// maxDomains bounds the names of an ingress.
const maxDomains = 16

var domain = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// maxPorts bounds a range of plain ports: each that is wanted is a socket.
const maxPorts = 10_000

// ParsePorts reads LOW-HIGH, or one port; empty is 0 and 0, which is none.
func ParsePorts(text string) (low, high int, err error) {
	if text == "" {
		return 0, 0, nil
	}
	first, last, ok := strings.Cut(text, "-")
	if !ok {
		last = first
	}
	if low, err = strconv.Atoi(first); err == nil {
		high, err = strconv.Atoi(last)
	}
	switch {
	case err != nil || low < 1 || high > 65535 || low > high:
		return 0, 0, fmt.Errorf("%q is no range of ports such as 7000-7999", text)
	case high-low >= maxPorts:
		return 0, 0, fmt.Errorf("%q has more than %d ports", text, maxPorts)
	}
	return low, high, nil
}

// ValidDomain says whether sites may be served under a name: with APP and OWNER
// before it, a name has 253 bytes at most.
func ValidDomain(name string) bool { return len(name) <= 120 && domain.MatchString(name) }

func (c Config) validateIngress(bad func(key, format string, args ...any)) {
	for key, v := range map[string]string{"ingress-http": c.IngressHTTP, "ingress-https": c.IngressHTTPS} {
		if err := checkHostPort(v); err != nil {
			bad(key, "%v", err)
		}
	}
	if len(c.IngressDomain) > maxDomains {
		bad("ingress-domain", "has %d names; at most %d are allowed", len(c.IngressDomain), maxDomains)
	}
	for _, d := range c.IngressDomain {
		if !ValidDomain(d) {
			bad("ingress-domain", "%q is no DNS name in small letters", d)
		}
	}
	if u, err := url.Parse(c.IngressACME); c.IngressACME != Internal && (err != nil || u.Scheme != "https" || u.Host == "") {
		bad("ingress-acme", "%q is neither an https URL nor internal", c.IngressACME)
	}
	if c.IngressEmail != "" {
		if a, err := mail.ParseAddress(c.IngressEmail); err != nil || a.Address != c.IngressEmail {
			bad("ingress-email", "%q is no email address", c.IngressEmail)
		}
	}
	if _, _, err := ParsePorts(c.IngressPorts); err != nil {
		bad("ingress-ports", "%v", err)
	}
}
