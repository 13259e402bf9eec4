package fogvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// kvmDevice is what KVM is reached by.
const kvmDevice = "/dev/kvm"

// detectAccel resolves "auto" (or ""), "kvm" or "tcg" against the device. The
// warning, if any, is for the operator.
func detectAccel(want, device string) (accel, warning string, err error) {
	if want == "tcg" {
		return "tcg", "", nil
	}
	if want != "" && want != "auto" && want != "kvm" {
		return "", "", fmt.Errorf("accel %q: want auto, kvm or tcg", want)
	}
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err == nil {
		return "kvm", "", f.Close()
	}
	why := "slow: TCG (no " + device + " on this machine)"
	if errors.Is(err, fs.ErrPermission) {
		why = "slow: TCG (" + device + " is not readable; remedy: sudo usermod -aG kvm \"$USER\", then log in again)"
	}
	if want == "kvm" {
		return "", "", fmt.Errorf("accel kvm was asked for: %w", err)
	}
	return "tcg", why, nil
}
