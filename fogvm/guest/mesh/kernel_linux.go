package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/formthefog/formation/fogvm/guest"
	"github.com/formthefog/formation/wg"
	"github.com/formthefog/formation/wg/dns"
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

// resolvConf says whom the guest's programs ask.
const resolvConf = "/etc/resolv.conf"

// ServeNames answers at port 53 of an address, and has the guest's programs ask
// there first: it refuses what is not the mesh's, whereupon they ask the next.
// What somebody in the guest has made of resolv.conf stays.
func ServeNames(ctx context.Context, s *dns.Server, at netip.Addr) error {
	address := netip.AddrPortFrom(at, 53).String()
	udp, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", address)
	if err != nil {
		return errors.Join(err, udp.Close())
	}
	alone := "nameserver " + guest.Gateway + "\n"
	both := "nameserver " + at.String() + "\n" + alone
	if err := exchange(resolvConf, alone, both); err != nil {
		return errors.Join(err, udp.Close(), tcp.Close())
	}
	return errors.Join(s.Run(ctx, udp, tcp), exchange(resolvConf, both, alone))
}

// exchange replaces a file that reads old; another stays as it is.
func exchange(path, old, new string) error {
	text, err := os.ReadFile(path)
	if err != nil || string(text) != old {
		return err
	}
	tmp := path + ".form-mesh"
	if err := os.WriteFile(tmp, []byte(new), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
