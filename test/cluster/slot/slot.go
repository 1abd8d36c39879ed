// Package slot divides one machine among clusters.
//
// Everything that a cluster takes from the machine and that has a name or an
// address, from its bridge to its ports, derives from its [Slot], so that two
// clusters can only meet when they were given the same one. Whoever hands out
// slots ([Choose]) prevents that.
package slot

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
)

// Limits of a slot's address plan.
const (
	// Count is how many slots there are. It is bounded by the second byte of
	// the default address range: 10.192.0.0/16 to 10.223.0.0/16.
	Count = 32
	// MaxNodes is how many nodes fit in a slot: the third byte of a pod's
	// address names its node, and has 64 values for that.
	MaxNodes = 63

	firstSecondByte = 192
	firstPort       = 24000 // below the kernel's ephemeral range
	portsPerSlot    = 10
)

// A Slot is a cluster's share of the machine.
type Slot struct {
	// Number is unique among the clusters of this machine.
	Number int `json:"number"`
	// CIDR is the /16 that nodes, pods and Services have their addresses in.
	CIDR netip.Prefix `json:"cidr"`
	// Port is the first of the block of ports on the host.
	Port int `json:"port"`
}

// New returns the slot of that number with its default addresses and ports.
func New(number int) Slot {
	return Slot{
		Number: number,
		CIDR:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(firstSecondByte + number), 0, 0}), 16),
		Port:   firstPort + portsPerSlot*number,
	}
}

// Validate reports what cannot work about the slot.
func (s Slot) Validate() error {
	var errs []error
	if s.Number < 0 || s.Number >= Count {
		errs = append(errs, fmt.Errorf("slot %d: want 0 to %d", s.Number, Count-1))
	}
	if !s.CIDR.IsValid() || !s.CIDR.Addr().Is4() || s.CIDR.Bits() != 16 || s.CIDR.Masked() != s.CIDR {
		errs = append(errs, fmt.Errorf("address range %v: want an IPv4 /16", s.CIDR))
	}
	if s.Port < 1024 || s.Port > 65535-portsPerSlot {
		errs = append(errs, fmt.Errorf("first port %d: want 1024 to %d", s.Port, 65535-portsPerSlot))
	}
	return errors.Join(errs...)
}

// Choose returns the first of the candidates that busy has nothing to say against.
func Choose(candidates []Slot, busy func(Slot) error) (Slot, error) {
	if len(candidates) == 0 {
		return Slot{}, errors.New("no slot is free: each has a cluster")
	}
	var errs []error
	for _, s := range candidates {
		err := busy(s)
		if err == nil {
			return s, nil
		}
		errs = append(errs, fmt.Errorf("slot %d: %w", s.Number, err))
	}
	return Slot{}, fmt.Errorf("no slot is free: %w", errors.Join(errs...))
}

// Bridge is the network device on the host that the nodes hang on.
func (s Slot) Bridge() string { return fmt.Sprintf("otto%d", s.Number) }

// Veth is the host's end of a node's cable.
func (s Slot) Veth(node int) string { return fmt.Sprintf("otto%dn%d", s.Number, node) }

// Netns is the name of a node's network namespace, as `ip netns` lists it.
func (s Slot) Netns(node int) string { return fmt.Sprintf("otto%d-n%d", s.Number, node) }

// Cgroup is the path of the control group that all nodes are in.
func (s Slot) Cgroup() string { return fmt.Sprintf("/otto%d", s.Number) }

// RunDir holds the sockets of the cluster. It is short, because a socket's path
// must fit in 108 bytes, and so it is not below the state folder.
func (s Slot) RunDir() string { return fmt.Sprintf("/run/otto%d", s.Number) }

// NodeRunDir holds the sockets of one node.
func (s Slot) NodeRunDir(node int) string {
	return filepath.Join(s.RunDir(), fmt.Sprintf("n%d", node))
}

// HostIP is the bridge's address: where nodes and pods reach the host.
func (s Slot) HostIP() netip.Addr { return s.addr(0, 1) }

// NodeIP is the address of a node; nodes count from 1.
func (s Slot) NodeIP(node int) netip.Addr { return s.addr(0, byte(10+node)) }

// NodeNet is the network of the bridge.
func (s Slot) NodeNet() netip.Prefix { return netip.PrefixFrom(s.addr(0, 0), 24) }

// PodNet is where the pods of a node have their addresses.
func (s Slot) PodNet(node int) netip.Prefix { return netip.PrefixFrom(s.addr(byte(64+node), 0), 24) }

// PodNets is where the pods of all nodes have theirs. The nodes and the host are
// outside: kube-proxy masquerades what comes from there to a Service, so that
// the answer of a pod on another node finds its way back.
func (s Slot) PodNets() netip.Prefix { return netip.PrefixFrom(s.addr(64, 0), 18) }

// ServiceNet is where Services have their addresses.
func (s Slot) ServiceNet() netip.Prefix { return netip.PrefixFrom(s.addr(128, 0), 17) }

// FakePodNet is where pods of kwok nodes seem to have their addresses. Nothing
// ever answers there.
func (s Slot) FakePodNet() netip.Prefix { return netip.PrefixFrom(s.addr(32, 0), 19) }

// APIServiceIP is the address of the API server within the cluster.
func (s Slot) APIServiceIP() netip.Addr { return s.addr(128, 1) }

// EtcdPort is etcd's client port on 127.0.0.1.
func (s Slot) EtcdPort() int { return s.Port }

// EtcdPeerPort is etcd's peer port on 127.0.0.1.
func (s Slot) EtcdPeerPort() int { return s.Port + 1 }

// APIPort is the API server's port.
func (s Slot) APIPort() int { return s.Port + 2 }

// KwokPort is where kwok plays kubelet.
func (s Slot) KwokPort() int { return s.Port + 3 }

// Ports are all ports that the slot uses on the host.
func (s Slot) Ports() []int {
	return []int{s.EtcdPort(), s.EtcdPeerPort(), s.APIPort(), s.KwokPort()}
}

func (s Slot) addr(third, fourth byte) netip.Addr {
	a := s.CIDR.Addr().As4()
	return netip.AddrFrom4([4]byte{a[0], a[1], third, fourth})
}
