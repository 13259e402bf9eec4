package fogvm

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/formthefog/formation/fogvm/guest"
)

// toldGuest connects a shim to an agent that says nothing but hello, and returns
// what the shim tells it, as JSON.
func toldGuest(t *testing.T, s *shim) (told <-chan string) {
	t.Helper()
	ours, theirs := net.Pipe()
	out := make(chan string, 16)
	go func() {
		defer close(out)
		hello := append([]byte("formation-guest"), guest.Version)
		if _, err := theirs.Write(hello); err != nil {
			return
		}
		if _, err := io.ReadFull(theirs, hello); err != nil {
			return
		}
		cfg := yamux.DefaultConfig()
		cfg.LogOutput = io.Discard
		session, err := yamux.Server(theirs, cfg)
		if err != nil {
			return
		}
		control, err := session.Accept()
		if err != nil {
			return
		}
		if _, _, err := guest.ReadFrame(control); err != nil {
			return
		}
		if guest.WriteFrame(control, guest.FrameJSON, []byte(`{"hello":{"version":1}}`)) != nil {
			return
		}
		for {
			_, message, err := guest.ReadFrame(control)
			if err != nil {
				return
			}
			out <- string(message)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.talk(ctx, ours)
	}()
	t.Cleanup(func() {
		cancel()
		theirs.Close()
		<-done
	})
	return out
}

// nextOf is the next message with this key.
func nextOf(t *testing.T, told <-chan string, key string) string {
	t.Helper()
	for {
		select {
		case m, ok := <-told:
			if !ok {
				t.Fatalf("the channel ended before %s", key)
			}
			if strings.HasPrefix(m, `{"`+key+`"`) {
				return m
			}
			if !strings.HasPrefix(m, `{"time"`) {
				t.Fatalf("%s came before %s", m, key)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no %s", key)
		}
	}
}

const hunter = "aHVudGVyMg==" // "hunter2", as it would be in a file of JSON

// A guest that is to have secrets is not configured before it has them, gets them
// again when it boots again, and they are in no file of the run directory.
func TestSecretsComeBeforeTheConfiguration(t *testing.T) {
	s := &shim{dir: t.TempDir(), log: testLogger(t), given: make(chan struct{})}
	s.spec = shimSpec{VM: VM{ID: "web-0", AwaitSecrets: true, Secrets: []guest.Secret{{Name: "DB", Value: []byte("hunter2")}}}}
	if err := saveJSONFile(filepath.Join(s.dir, specFile), s.spec); err != nil {
		t.Fatal(err)
	}
	told := toldGuest(t, s)
	eventually(t, 20*time.Second, "the reason", func() bool { return s.snapshot().Reason == "waits for its secrets" })
	select {
	case m := <-told:
		t.Fatalf("told before there are secrets: %s", m)
	default:
	}
	if err := s.takeSecrets([]guest.Secret{{Name: "DB", Value: []byte("hunter2"), Env: true}}); err != nil {
		t.Fatal(err)
	}
	want := `{"secrets":[{"name":"DB","value":"` + hunter + `","env":true}]}`
	if got := nextOf(t, told, "secrets"); got != want {
		t.Errorf("told %s", got)
	}
	for m := ""; !strings.HasPrefix(m, `{"config"`); { // the set may be sent twice
		m = <-told
		if m == "" || strings.HasPrefix(m, `{"secrets"`) && m != want || strings.HasPrefix(m, `{"config"`) && strings.Contains(m, hunter) {
			t.Fatalf("told %q", m)
		}
	}
	again := toldGuest(t, s)
	if got := nextOf(t, again, "secrets"); got != want {
		t.Errorf("the next boot is told %s", got)
	}
	nextOf(t, again, "config")
	eventually(t, 20*time.Second, "the new agent", func() bool {
		_, err := s.connected()
		return err == nil
	})
	if err := s.takeSecrets(nil); err != nil {
		t.Fatal(err)
	}
	if got := nextOf(t, again, "secrets"); got != `{"secrets":[]}` {
		t.Errorf("after all were removed: told %s", got)
	}
	err := filepath.WalkDir(s.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), hunter) || strings.Contains(string(b), "hunter2") {
			err = errors.Join(err, errors.New("a secret is in "+path))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A guest whose secrets never come is ended as one that hangs.
func TestSecretsThatNeverCome(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	s := &shim{dir: t.TempDir(), patience: 10 * time.Millisecond, turn: time.Millisecond, stop: make(chan bool, 1), given: make(chan struct{}), log: testLogger(t)}
	s.spec.StopTimeout = time.Second
	s.status.AgentAt = time.Now()
	if asked, hung, _ := s.await(t.Context(), &machine{pid: cmd.Process.Pid, exited: exited}); asked || !hung {
		t.Errorf("asked %v, hung %v", asked, hung)
	}
}

// A VM has the secrets of the last wish that knew them, also when giving them
// fails or another Manager gave others; a wish that knows none takes none away.
func TestSecretsReachTheVM(t *testing.T) {
	r := fakeRig(t)
	m := r.manage(t)
	wish := func(secrets []guest.Secret, want string) {
		t.Helper()
		r.vm.Secrets = secrets
		m.sync(t, r.vm)
		m.await(t, r, "web-0", "ready", ready)
		eventually(t, r.patience, "secret "+want, func() bool {
			got := r.cfg.Fake.Secrets("web-0")
			return want == "" && len(got) == 0 || len(got) == 1 && string(got[0].Value) == want
		})
	}
	one := func(v string) []guest.Secret { return []guest.Secret{{Name: "DB", Value: []byte(v)}} }
	wish(one("a"), "a")
	wish(one("b"), "b")
	m.end(t)
	m = r.manage(t)
	wish(nil, "b")
	wish(one("a"), "a")
	m.end(t)
	r.cfg.Fake.fault = failing(opSecrets, 3)
	m = r.manage(t)
	wish(one("c"), "c")
	wish([]guest.Secret{}, "")
	if s, _ := m.status("web-0"); s.Launches != 0 {
		t.Errorf("rebooted: %+v", s)
	}
}
