package link

import (
	"net"
	"net/netip"
	"strings"
)

// host returns the host of an address, and its port if it has one, in any form
// that gRPC dials. A Unix socket has neither.
func host(addr string) (name, port string) {
	scheme, rest, ok := strings.Cut(addr, ":///")
	switch {
	case ok:
		addr = rest
	case strings.HasPrefix(addr, "unix:") || strings.HasPrefix(addr, "unix-abstract:"):
		return "", ""
	}
	if scheme == "unix" && ok {
		return "", ""
	}
	for _, prefix := range []string{"dns:", "passthrough:", "ipv4:", "ipv6:"} {
		addr = strings.TrimPrefix(addr, prefix)
	}
	if name, port, err := net.SplitHostPort(addr); err == nil {
		return name, port
	}
	return strings.Trim(addr, "[]"), ""
}

// Port returns the port of an address, or "".
func Port(addr string) string {
	_, port := host(addr)
	return port
}

// Loopback reports whether an address is surely on this machine.
func Loopback(addr string) bool {
	name, _ := host(addr)
	if name == "" || name == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(name)
	return err == nil && ip.Unmap().IsLoopback()
}

// Near reports whether the way to an address is surely short, so that the time to
// compress would be lost: this machine, a private or link-local IP address, a
// name without a dot, and the names that a cluster gives its services
// (logs.team.svc, logs.team.svc.cluster.local). The name is not resolved: what
// is decided must not depend on the moment.
func Near(addr string) bool {
	if Loopback(addr) {
		return true
	}
	name, _ := host(addr)
	if ip, err := netip.ParseAddr(name); err == nil {
		ip = ip.Unmap()
		return ip.IsPrivate() || ip.IsLinkLocalUnicast()
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return !strings.Contains(name, ".") || strings.HasSuffix(name, ".svc") ||
		strings.Contains(name, ".svc.") || strings.HasSuffix(name, ".cluster.local")
}
