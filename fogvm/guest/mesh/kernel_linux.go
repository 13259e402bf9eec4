package mesh

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/kernel"
	"github.com/formthefog/formation/wg/link"
)

// OpenKernel opens the interface of the guest's kernel, which loads the module
// when there is one.
func OpenKernel(private wg.Key) (Interface, error) {
	dev, err := kernel.Open(kernel.Config{Name: guest.MeshInterface, Key: private, Port: guest.MeshPort})
	if errors.Is(err, kernel.ErrUnsupported) {
		return nil, fmt.Errorf("the guest is not on the mesh: its base has no kernel module wireguard, or no modprobe to load it: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return kernelInterface{dev}, nil
}

type kernelInterface struct{ *kernel.Device }

func (k kernelInterface) Address(own []netip.Addr, space wg.Space) error {
	inTheWay, err := link.Set(link.Config{Name: k.Name(), MTU: guest.MeshMTU, Addresses: own,
		Prefixes: []netip.Prefix{space.Prefix6(), space.Prefix4()}})
	if err == nil && len(inTheWay) > 0 {
		err = fmt.Errorf("the guest reaches %v otherwise than by the mesh", inTheWay)
	}
	return err
}
