package guest

import (
	"errors"
	"os"
	"time"
)

var errNoSSHD = errors.New("the root filesystem has no /usr/sbin/sshd")

// startSSH makes the host key on first boot and keeps sshd running.
func (a *agent) startSSH(cfg Config, env environment) error {
	const sshd = "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		return errNoSSHD
	}
	public, err := hostKey()
	if err != nil {
		return err
	}
	if err := writeFile("/etc/ssh/sshd_config.d/00-formation.conf", sshdConfig(cfg, env), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return err
	}
	log, err := openLog("sshd.log")
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.hostKey = public
	a.mu.Unlock()
	root := account{Name: "root", Home: "/root", Shell: "/bin/sh"}
	daemon := &entrypoint{
		procs: a.procs, policy: RestartAlways, out: log, tail: newRing(tailBytes),
		cmd: command{argv: []string{sshd, "-D", "-e"}, env: []string{"PATH=" + defaultPath}, dir: "/", as: root},
		report: func(e appEvent) {
			if !e.running {
				a.log.Warn("sshd", "reason", e.reason)
			}
		},
	}
	a.tasks.Go(func() { daemon.run(a.appCtx, func() time.Duration { return time.Second }) })
	return nil
}

func hostKey() (public string, err error) {
	private, err := os.ReadFile(hostKeyPath)
	if err == nil {
		if public, err = publicHostKey(private); err == nil {
			return public, nil
		}
	}
	private, public, err = newHostKey()
	if err != nil {
		return "", err
	}
	if err := writeFile(hostKeyPath, string(private), 0o600); err != nil {
		return "", err
	}
	// Published keys must survive the host's crash.
	return public, syncFolder(diskHome)
}
