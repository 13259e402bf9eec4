package guest

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestReportIsChecked(t *testing.T) {
	const (
		host = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKVi4ZotV7JsdLGAfs4vtSYAN3krVSWFxIY5pW9hL+Sb"
		mesh = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
		rsa  = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAIQC7"
	)
	for _, c := range []struct {
		name, host, mesh   string
		wantHost, wantMesh string
	}{
		{"nothing", "", "", "", ""},
		{"both", host, mesh, host, mesh},
		{"comment", host + " root@web", "", host, ""},
		{"long comment", host + " " + strings.Repeat("x", 900), "", host, ""},
		{"1000 bytes", strings.Repeat("k", 1000), strings.Repeat("m", 1000), "", ""},
		{"1 MiB", strings.Repeat("k", 1<<20), strings.Repeat("A", 1<<20), "", ""},
		{"a long key", "ssh-ed25519 " + strings.Repeat("A", 800), strings.Repeat("A", 128), "", ""},
		{"another type", rsa, "", "", ""},
		{"options", `command="x" ` + host, "", "", ""},
		{"two lines", host + "\n" + host, mesh + "\n", "", ""},
		{"31 bytes", "", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==", "", ""},
		{"loose bits", "", strings.TrimSuffix(mesh, "8=") + "9=", "", ""},
	} {
		got, err := Status{SSHHostKey: c.host, MeshKey: c.mesh}.checked()
		if got.SSHHostKey != c.wantHost || got.MeshKey != c.wantMesh {
			t.Errorf("%s: %q, %q", c.name, got.SSHHostKey, got.MeshKey)
		}
		if refused := (c.host != "" && c.wantHost == "") || (c.mesh != "" && c.wantMesh == ""); refused != (err != nil) {
			t.Errorf("%s: error %v", c.name, err)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("%s: an error of %d bytes", c.name, len(err.Error()))
		}
	}
}

// TestClipReason: whatever a guest says is short, printable and valid UTF-8,
// and what was all that already is left alone.
func TestClipReason(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Repeat(string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "raw"))+rapid.String().Draw(t, "text"), rapid.IntRange(0, 40).Draw(t, "times"))
		got := ClipReason(in)
		if len(got) > MaxReason || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q gives %q", in, got)
		}
		if again := ClipReason(got); again != got {
			t.Fatalf("%q gives %q gives %q", in, got, again)
		}
	})
	if got := ClipReason(strings.Repeat("é", 500) + " the end"); !strings.HasSuffix(got, "é the end") || len(got) < MaxReason-2 {
		t.Errorf("got %q of %d bytes", got, len(got))
	}
}

// TestPace: a guest that reports as fast as it can is heard four times a second,
// and its last word always.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		latest, over, done := make(chan Status, 1), make(chan struct{}), make(chan struct{})
		start := time.Now()
		var got []string
		go func() {
			defer close(done)
			pace(latest, over, func(s Status) { got = append(got, fmt.Sprint(time.Since(start), " ", s.Restarts)) })
		}()
		offer := func(n int) {
			select {
			case <-latest:
			default:
			}
			latest <- Status{Restarts: n}
			synctest.Wait()
		}
		for n := range 1000 { // one a millisecond
			offer(n)
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		offer(1000) // at once after a quiet time
		offer(1001) // and the last at the end
		close(over)
		close(latest)
		<-done
		want := []string{"0s 0", "250ms 249", "500ms 499", "750ms 749", "1s 999", "11s 1000", "11s 1001"}
		if len(got) != len(want) || got[0] != want[0] || got[5] != want[5] || got[6] != want[6] {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	})
}
