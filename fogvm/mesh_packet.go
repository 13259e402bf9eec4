package fogvm

import (
	"encoding/binary"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/formthefog/formation/fogvm/guest"
)

// maxDatagram is the largest UDP datagram on the guest's network.
const maxDatagram = mtu - header.IPv4MinimumSize - header.UDPMinimumSize

// toMesh says whether a frame that passed the filter is for somebody on the mesh.
func toMesh(frame []byte) bool {
	return len(frame) >= header.EthernetMinimumSize+header.IPv4MinimumSize && binary.BigEndian.Uint16(frame[12:]) == 0x0800 &&
		guest.MeshVirtual.Contains(netip.AddrFrom4([4]byte(frame[30:34])))
}

// meshDatagram takes the datagram out of such a frame. Only whole ones of the
// guest's WireGuard count, in order to the last byte. b is part of frame.
func meshDatagram(frame []byte) (b []byte, to netip.AddrPort, ok bool) {
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	if !ip.IsValid(len(ip)) || !ip.IsChecksumValid() || ip.More() || ip.FragmentOffset() != 0 || ip.TransportProtocol() != header.UDPProtocolNumber {
		return nil, to, false
	}
	udp := header.UDP(ip.Payload())
	if len(udp) < header.UDPMinimumSize || int(udp.Length()) != len(udp) || udp.SourcePort() != guest.MeshPort || udp.DestinationPort() == 0 {
		return nil, to, false
	}
	b = udp.Payload()
	if udp.Checksum() != 0 && !udp.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), checksum.Checksum(b, 0)) {
		return nil, to, false
	}
	return b, netip.AddrPortFrom(netip.AddrFrom4(ip.DestinationAddress().As4()), udp.DestinationPort()), true
}

// appendMeshFrame appends the frame that brings the guest's WireGuard a datagram
// of at most maxDatagram bytes, with its length before it as QEMU wants it.
func appendMeshFrame(buf, b []byte, from netip.AddrPort) []byte {
	const headers = header.EthernetMinimumSize + header.IPv4MinimumSize + header.UDPMinimumSize
	buf = binary.BigEndian.AppendUint32(buf, uint32(headers+len(b)))
	at := len(buf)
	buf = append(buf, make([]byte, headers)...)
	buf = append(buf, b...)
	frame := buf[at:]
	src, dst := tcpip.AddrFrom4(from.Addr().As4()), tcpip.AddrFrom4(guestAddress.As4())
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: gatewayLink, DstAddr: tcpip.LinkAddress(guestMAC[:]), Type: header.IPv4ProtocolNumber,
	})
	ip := header.IPv4(frame[header.EthernetMinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(ip)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber), SrcAddr: src, DstAddr: dst,
		Flags: header.IPv4FlagDontFragment,
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	udp := header.UDP(ip.Payload())
	udp.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: guest.MeshPort, Length: uint16(len(udp))})
	sum := header.PseudoHeaderChecksum(header.UDPProtocolNumber, src, dst, uint16(len(udp)))
	udp.SetChecksum(^udp.CalculateChecksum(checksum.Checksum(b, sum)))
	return buf
}

var gatewayLink = func() tcpip.LinkAddress {
	a, err := net.ParseMAC(gatewayMAC)
	if err != nil {
		panic(err) // a constant of ours
	}
	return tcpip.LinkAddress(a)
}()
