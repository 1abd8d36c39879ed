package controlplane

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

func plane(t *testing.T, config state.Config) *ControlPlane {
	t.Helper()
	return &ControlPlane{Cluster: state.Cluster{Dir: t.TempDir()}, Slot: slot.New(3), Config: config, Bin: "/bin"}
}

func TestOnlyNodesMakeTheServerListenOnTheBridge(t *testing.T) {
	const loopbackOnly = "--endpoint-reconciler-type=none"
	for name, tt := range map[string]struct {
		config state.Config
		ip     netip.Addr
		alone  bool
	}{
		"nodes":               {state.Config{Nodes: 1}, slot.New(3).HostIP(), false},
		"kwok":                {state.Config{Kwok: 3}, netip.MustParseAddr("127.0.0.1"), true},
		"control plane alone": {state.Config{}, netip.MustParseAddr("127.0.0.1"), true},
	} {
		t.Run(name, func(t *testing.T) {
			args := plane(t, tt.config).server().Args
			if !slices.Contains(args, "--bind-address="+tt.ip.String()) {
				t.Errorf("does not listen on %v", tt.ip)
			}
			if slices.Contains(args, loopbackOnly) != tt.alone {
				t.Errorf("%s: %v, want %v", loopbackOnly, !tt.alone, tt.alone)
			}
		})
	}
}

func TestFeatureGatesReachEveryComponentButEtcd(t *testing.T) {
	for _, s := range plane(t, state.Config{FeatureGates: "X=true"}).Specs() {
		if got, want := slices.Contains(s.Args, "--feature-gates=X=true"), s.Name != "etcd"; got != want {
			t.Errorf("%s: %v, want %v", s.Name, got, want)
		}
	}
}

func TestEveryFileThatAComponentIsGivenExists(t *testing.T) {
	c := plane(t, state.Config{Nodes: 1})
	for range 2 { // preparing again changes nothing
		if err := c.Prepare(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range c.Specs() {
		for _, arg := range s.Args {
			flag, path, _ := strings.Cut(arg, "=")
			if !strings.HasPrefix(path, c.Cluster.Dir) || flag == "--data-dir" {
				continue
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s %s: %v", s.Name, flag, err)
			}
		}
	}
	if _, err := c.Client(); err != nil {
		t.Errorf("client: %v", err)
	}
}
