package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const usernsFormfile = `NAME a
COPY --chown=www-data f /srv/f
INSTALL pkg
RUN rm /etc/removeme && rm -r /opt/old && mkdir -m 2775 /opt/old && chown 33:50 /opt/old && ln /srv/f /srv/g
`

// TestUserNamespace: a build without root gives the bytes of one as root. Run
// as root it starts itself as nobody, whom a private mount namespace shows a
// line in /etc/subuid.
func TestUserNamespace(t *testing.T) {
	p := newProject(t, map[string]string{"Formfile": usernsFormfile, "f": "f"})
	mine := strings.Join(roots(p.mustBuild().Layers), " ")
	if os.Geteuid() != 0 {
		t.Log("layers:", mine)
		return
	}
	for _, tool := range []string{"newuidmap", "unshare", "setpriv"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %v", err)
		}
	}
	dir, err := os.MkdirTemp("", "formation-nobody")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"test": self, "subid": []byte("nobody:300000:65536\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := `mount --bind "$0/subid" /etc/subuid && mount --bind "$0/subid" /etc/subgid &&
		chown nobody "$0" && cd "$0" &&
		exec setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME="$0" TMPDIR="$0" ./test -test.run='^TestUserNamespace$' -test.v`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation=private", "sh", "-c", script, dir).CombinedOutput()
	if err != nil {
		t.Fatalf("as nobody: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "SKIP") {
		t.Skipf("SKIP: %s", out)
	}
	m := regexp.MustCompile(`layers: (.*)`).FindSubmatch(out)
	if m == nil || string(m[1]) != mine {
		t.Errorf("as root: %s\nas nobody:\n%s", mine, out)
	}
}
