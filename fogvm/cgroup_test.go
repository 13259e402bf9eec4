package fogvm

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeCgroups makes a cgroup v2 hierarchy: what each folder passes on, by path.
// "busy" is one that cannot be made to pass anything on.
func fakeCgroups(t *testing.T, passes map[string]string) (root string) {
	t.Helper()
	root = t.TempDir()
	for path, passed := range passes {
		dir := filepath.Join(root, path)
		control := filepath.Join(dir, subtreeControl)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if passed == "busy" {
			if err := os.Mkdir(control, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(control, []byte(passed+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestUnifiedParent: below the first cgroup that gives its children every limit,
// and the host is changed only where there is none.
func TestUnifiedParent(t *testing.T) {
	const own = "system.slice/formd.service"
	for _, c := range []struct {
		name    string
		passes  map[string]string
		want    string
		changed bool
	}{
		{"a service", map[string]string{"": "cpuset cpu io memory pids", "system.slice": "memory pids", own: "busy"}, "", false},
		{"its slice passes all on", map[string]string{"": "cpu memory pids", "system.slice": "memory cpu pids", own: "busy"}, "system.slice", false},
		{"delegated and prepared", map[string]string{"": "cpu memory pids", "system.slice": "memory", own: "pids cpu memory"}, own, false},
		{"nobody passes all on", map[string]string{"": "memory", "system.slice": "memory pids", own: "busy"}, "system.slice", true},
		{"nobody can", map[string]string{"": "busy", "system.slice": "busy", own: "busy"}, own, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := fakeCgroups(t, c.passes)
			parents := parentsOf(root, "0::/"+own+"\n")
			if want := map[string]string{"": filepath.Join(root, own)}; !maps.Equal(parents, want) {
				t.Fatalf("own is %v", parents)
			}
			if got := unifiedParent(parents[""]); got != filepath.Join(root, c.want) {
				t.Errorf("got %s, want %s", got, filepath.Join(root, c.want))
			}
			for path, passed := range c.passes {
				data, err := os.ReadFile(filepath.Join(root, path, subtreeControl))
				switch {
				case passed == "busy":
				case c.changed && path == c.want:
					if !strings.HasPrefix(string(data), "+memory +cpu +pids") {
						t.Errorf("%q has %q, %v", path, data, err)
					}
				case string(data) != passed+"\n":
					t.Errorf("%q has %q, %v", path, data, err)
				}
			}
		})
	}
}

// TestCgroupLimits: each is written, and each that cannot be is reported.
func TestCgroupLimits(t *testing.T) {
	vm := VM{VCPU: 2, MemoryBytes: 1 << 30}
	want := map[string]string{"memory.max": "1610612736", "cpu.max": "300000 100000", "pids.max": "512"}
	folder := filepath.Join(t.TempDir(), "formation-x")
	c := &cgroup{}
	err := c.add(folder, cgroupLimits(vm)[""])
	for name := range want {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is missing: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.add(folder, cgroupLimits(vm)[""]); err != nil {
		t.Error(err)
	}
	for name, value := range want {
		if data, err := os.ReadFile(filepath.Join(folder, name)); string(data) != value {
			t.Errorf("%s is %q, %v", name, data, err)
		}
	}
}

// TestCgroupParentsBesideV1: a v2 hierarchy beside a v1 layout has no limits to
// give, and a controller that is nowhere is reported.
func TestCgroupParentsBesideV1(t *testing.T) {
	root := fakeCgroups(t, map[string]string{"memory/a": "", "pids/b": "", "unified/c": ""})
	want := map[string]string{"memory": filepath.Join(root, "memory/a"), "pids": filepath.Join(root, "pids/b")}
	if got := parentsOf(root, "9:pids:/b\n4:memory:/a\n1:cpu:/gone\n0::/c\n"); !maps.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestTranslationBufferFitsTheOverhead(t *testing.T) {
	argv := strings.Join(qemuArgv("qemu", "tcg", VM{}, descriptors{}), " ")
	if !strings.Contains(argv, "tb-size=256") || translationBuffer > overhead/2 {
		t.Errorf("buffer %d, overhead %d: %s", translationBuffer, overhead, argv)
	}
}
