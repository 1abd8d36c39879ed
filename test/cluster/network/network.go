// Package network wires a cluster: a bridge on the host, and for each node a
// network namespace on a virtual cable.
//
// Pods are routed, never masqueraded: the host has a route to each node's pods
// and to the Services (by way of node 1), and nodes have routes to each other's
// pods. Nodes have no default route, so nothing in a cluster reaches further
// than this machine.
package network

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
)

// sink is a device in each node that swallows packets for Service addresses
// which kube-proxy has not programmed (yet), as there is no default route to
// reject them. It is a bridge without ports, because not every kernel has dummy
// devices.
const sink = "svc0"

// Busy reports what on this machine is in the way of a slot.
func Busy(s slot.Slot) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if _, err := netlink.LinkByName(s.Bridge()); err == nil {
		return fmt.Errorf("network device %s exists", s.Bridge())
	} else if !notFound(err) {
		return fmt.Errorf("looking for network device %s: %w", s.Bridge(), err)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if dst, ok := prefix(r.Dst); ok && dst.Bits() > 0 && dst.Overlaps(s.CIDR) {
			return fmt.Errorf("there is a route to %v, within %v", dst, s.CIDR)
		}
	}
	for _, port := range s.Ports() {
		l, err := net.Listen("tcp4", ":"+strconv.Itoa(port))
		if err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Create makes the devices, namespaces and routes of a cluster with that many
// nodes. What is there already is left as it is.
func Create(s slot.Slot, nodes int) error {
	bridge, err := createBridge(s)
	if err != nil {
		return fmt.Errorf("making bridge %s: %w", s.Bridge(), err)
	}
	for n := 1; n <= nodes; n++ {
		if err := createNode(s, bridge, n, nodes); err != nil {
			return fmt.Errorf("wiring node %d: %w", n, err)
		}
	}
	return nil
}

// Remove takes everything away that Create made, however far it came; routes go
// with the bridge. Removing nothing is not an error.
func Remove(s slot.Slot) error {
	names, err := filepath.Glob("/run/netns/" + s.Bridge() + "-n*")
	if err != nil {
		return err
	}
	for _, name := range names {
		// Deleting the namespace deletes its end of the cable, and thereby ours,
		// but only when its last user has let go: do not wait for that.
		if err := netns.DeleteNamed(filepath.Base(name)); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("removing network namespace %s: %w", name, err)
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing network devices: %w", err)
	}
	for _, link := range links {
		var node int
		name := link.Attrs().Name
		isVeth := false
		if n, err := fmt.Sscanf(name, s.Bridge()+"n%d", &node); err == nil && n == 1 {
			isVeth = name == s.Veth(node)
		}
		if name != s.Bridge() && !isVeth {
			continue
		}
		if err := netlink.LinkDel(link); err != nil && !notFound(err) {
			return fmt.Errorf("removing network device %s: %w", name, err)
		}
	}
	return nil
}

// Enter moves the calling thread into a node's network namespace.
func Enter(s slot.Slot, node int) error {
	ns, err := netns.GetFromName(s.Netns(node))
	if err != nil {
		return fmt.Errorf("opening network namespace %s: %w", s.Netns(node), err)
	}
	defer func() { _ = ns.Close() }() // a handle only
	return netns.Set(ns)
}

func createBridge(s slot.Slot) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.Bridge()
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, err
	}
	bridge, err := netlink.LinkByName(s.Bridge())
	if err != nil {
		return nil, err
	}
	if err := netlink.AddrReplace(bridge, address(s.HostIP(), s.NodeNet())); err != nil {
		return nil, err
	}
	return bridge, netlink.LinkSetUp(bridge)
}

func createNode(s slot.Slot, bridge netlink.Link, n, nodes int) error {
	ns, err := createNetns(s.Netns(n))
	if err != nil {
		return fmt.Errorf("making network namespace %s: %w", s.Netns(n), err)
	}
	defer func() { _ = ns.Close() }() // a handle only
	if _, err := netlink.LinkByName(s.Veth(n)); notFound(err) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = s.Veth(n), bridge.Attrs().Index
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)})
		if err != nil {
			return fmt.Errorf("making cable %s: %w", s.Veth(n), err)
		}
	} else if err != nil {
		return err
	}
	veth, err := netlink.LinkByName(s.Veth(n))
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	if err := configureNode(s, ns, n, nodes); err != nil {
		return fmt.Errorf("configuring network namespace %s: %w", s.Netns(n), err)
	}
	hostRoutes := []netip.Prefix{s.PodNet(n)}
	if n == 1 {
		hostRoutes = append(hostRoutes, s.ServiceNet())
	}
	for _, dst := range hostRoutes {
		r := netlink.Route{LinkIndex: bridge.Attrs().Index, Dst: ipnet(dst), Gw: s.NodeIP(n).AsSlice()}
		if err := netlink.RouteReplace(&r); err != nil {
			return fmt.Errorf("routing %v to node %d: %w", dst, n, err)
		}
	}
	return nil
}

// configureNode sets up the node's side of the cable.
func configureNode(s slot.Slot, ns netns.NsHandle, n, nodes int) error {
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = sink
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	index := map[string]int{}
	for _, name := range []string{"lo", "eth0", sink} {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		index[name] = link.Attrs().Index
		if name == "eth0" {
			if err := h.AddrReplace(link, address(s.NodeIP(n), s.NodeNet())); err != nil {
				return err
			}
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
	}
	routes := []netlink.Route{{LinkIndex: index[sink], Dst: ipnet(s.ServiceNet()), Scope: netlink.SCOPE_LINK}}
	for other := 1; other <= nodes; other++ {
		if other != n {
			routes = append(routes, netlink.Route{LinkIndex: index["eth0"], Dst: ipnet(s.PodNet(other)), Gw: s.NodeIP(other).AsSlice()})
		}
	}
	for _, r := range routes {
		if err := h.RouteReplace(&r); err != nil {
			return fmt.Errorf("routing %v: %w", r.Dst, err)
		}
	}
	return nil
}

// createNetns returns the namespace of that name and makes it if need be.
func createNetns(name string) (netns.NsHandle, error) {
	ns, err := netns.GetFromName(name)
	if err == nil {
		return ns, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return netns.None(), err
	}
	type result struct {
		ns  netns.NsHandle
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the new namespace, and ends
		ns, err := netns.NewNamed(name)
		if err == nil {
			err = sysctls()
		}
		made <- result{ns, err}
	}()
	r := <-made
	return r.ns, r.err
}

// sysctls sets what a node needs in the namespace of the calling thread.
func sysctls() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	// Without it, pods of one node could not reach a Service whose answer would
	// cross only the node's bridge.
	err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0o644)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the kernel has no br_netfilter: load it with modprobe br_netfilter")
	}
	return err
}

func address(ip netip.Addr, network netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(network.Bits(), 32)}}
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix converts a route's destination; the default route has none or 0.0.0.0/0.
func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits), ok
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}
