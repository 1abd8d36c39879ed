package link

import "testing"

func TestAddressesNearAndFar(t *testing.T) {
	for _, row := range []struct {
		addr           string
		loopback, near bool
		port           string
	}{
		{"127.0.0.1:50051", true, true, "50051"},
		{"localhost:50051", true, true, "50051"},
		{"[::1]:50051", true, true, "50051"},
		{"[::ffff:127.0.0.1]:50051", true, true, "50051"},
		{"unix:///run/logs.sock", true, true, ""},
		{"unix:logs.sock", true, true, ""},
		{"10.1.2.3:50051", false, true, "50051"},
		{"[fd00::1]:50051", false, true, "50051"},
		{"ipv4:192.168.1.1:50051", false, true, "50051"},
		{"logs:50051", false, true, "50051"},
		{"dns:///logs:50051", false, true, "50051"},
		{"logs.team.svc:50051", false, true, "50051"},
		{"logs.team.svc.cluster.local.:50051", false, true, "50051"},
		{"logs.example:443", false, false, "443"},
		{"dns:///logs.example:443", false, false, "443"},
		{"logs.svc.example:443", false, true, "443"},
		{"203.0.113.1:443", false, false, "443"},
		{"logs.example", false, false, ""},
	} {
		if got := Loopback(row.addr); got != row.loopback {
			t.Errorf("Loopback(%q) = %v", row.addr, got)
		}
		if got := Near(row.addr); got != row.near {
			t.Errorf("Near(%q) = %v", row.addr, got)
		}
		if got := Port(row.addr); got != row.port {
			t.Errorf("Port(%q) = %q", row.addr, got)
		}
	}
}
