package guest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestWaitDisks: the root is stacked when every disk on the bus has come up, in
// whatever order.
func TestWaitDisks(t *testing.T) {
	sys := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(sys, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for slot, device := range map[string]string{"80.0": "0x1042", "80.1": "0x1042", "80.2": "0x1001", "03.0": "0x1042", "02.0": "0x1041"} {
		write("bus/pci/devices/0000:00:"+slot+"/vendor", "0x1af4")
		write("bus/pci/devices/0000:00:"+slot+"/device", device)
	}
	write("bus/pci/devices/0000:00:1f.0/vendor", "0x8086")
	write("bus/pci/devices/0000:00:1f.0/device", "0x1042")
	for i, serial := range []string{DiskSerial, LayerSerial(0), LayerSerial(2)} {
		write("block/vd"+string(rune('a'+i))+"/serial", serial)
		if found, err := waitDisks(sys, 0); err == nil {
			t.Errorf("goes on with %v", found)
		}
	}
	write("block/vdd/serial", LayerSerial(1))
	found, err := waitDisks(sys, time.Second)
	if err != nil || len(found) != 4 || found[LayerSerial(1)] != "/dev/vdd" {
		t.Errorf("%v, %v", found, err)
	}
}
