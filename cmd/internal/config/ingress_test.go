package config

import (
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string][2]int{"": {0, 0}, "7000-7999": {7000, 7999}, "53": {53, 53}, "1-10000": {1, 10000}} {
		if low, high, err := ParsePorts(text); err != nil || [2]int{low, high} != want {
			t.Errorf("%q: %d-%d, %v", text, low, high, err)
		}
	}
	for _, bad := range []string{"x", "0-5", "7-6", "1-65536", "1-", "-1", "1-10001", "1-2-3"} {
		if low, high, err := ParsePorts(bad); err == nil {
			t.Errorf("%q is %d-%d", bad, low, high)
		}
	}
}

func TestIngressIsChecked(t *testing.T) {
	for key, change := range map[string]func(*Config){
		"ingress-http":   func(c *Config) { c.IngressHTTP = "80" },
		"ingress-https":  func(c *Config) { c.IngressHTTPS = "" },
		"ingress-domain": func(c *Config) { c.IngressDomain = []string{"Example.org"} },
		"ingress-acme":   func(c *Config) { c.IngressACME = "http://ca.example/directory" },
		"ingress-email":  func(c *Config) { c.IngressEmail = "Me <me@example.org>" },
		"ingress-ports":  func(c *Config) { c.IngressPorts = "70000" },
	} {
		c := Default(env(true))
		c.IngressDomain, c.IngressEmail, c.IngressPorts = []string{"example.org", "a-b.example.org"}, "me@example.org", "7000-7100"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") {
			t.Errorf("%s: %v", key, err)
		}
	}
}
