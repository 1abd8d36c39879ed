package node

import (
	"encoding/json"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
	"github.com/ottoscaler/ottoscaler/test/cluster/toolchain"
)

func render(t *testing.T, index int, config state.Config) map[string][]byte {
	t.Helper()
	n := &Node{
		Index: index, Cluster: state.Cluster{Dir: "/state/a"}, Slot: slot.New(4), Config: config,
		System: toolchain.System{Runc: "/usr/sbin/runc", Plugins: "/usr/lib/cni"},
	}
	files, err := n.files("/pki/ca.crt", "/pki/kubelet.crt", "/pki/kubelet.key")
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func kubelet(t *testing.T, files map[string][]byte) map[string]any {
	t.Helper()
	var config map[string]any
	if err := yaml.Unmarshal(files["kubelet.yaml"], &config); err != nil {
		t.Fatal(err)
	}
	return config
}

func TestNodesOfOneMachineShareNoPath(t *testing.T) {
	one, two := kubelet(t, render(t, 1, state.Config{})), kubelet(t, render(t, 2, state.Config{}))
	for _, field := range []string{"cgroupRoot", "containerRuntimeEndpoint", "address", "resolvConf"} {
		if one[field] == nil || one[field] == two[field] {
			t.Errorf("%s: %v and %v", field, one[field], two[field])
		}
	}
}

func TestOptionsReachTheKubelet(t *testing.T) {
	config := kubelet(t, render(t, 1, state.Config{FeatureGates: "A=true,B=false", ContainerLogMaxSize: "64Ki"}))
	gates, _ := config["featureGates"].(map[string]any)
	if gates["A"] != true || gates["B"] != false {
		t.Errorf("gates = %v", gates)
	}
	if config["containerLogMaxSize"] != "64Ki" || config["containerLogMonitorInterval"] == nil {
		t.Errorf("log size = %v, looked at every %v", config["containerLogMaxSize"], config["containerLogMonitorInterval"])
	}
	plain := kubelet(t, render(t, 1, state.Config{}))
	for _, field := range []string{"featureGates", "containerLogMaxSize"} {
		if v, ok := plain[field]; ok {
			t.Errorf("%s = %v though nobody asked", field, v)
		}
	}
}

func TestAMalformedFeatureGateIsRefused(t *testing.T) {
	n := &Node{Index: 1, Slot: slot.New(0), Config: state.Config{FeatureGates: "A"}}
	if _, err := n.files("", "", ""); err == nil || !strings.Contains(err.Error(), `"A"`) {
		t.Errorf("err = %v, want it to name the gate", err)
	}
}

func TestPluginsGivePodsAddressesOfTheirNode(t *testing.T) {
	var config struct {
		Plugins []struct {
			Type string
			IPAM struct {
				Ranges [][]struct{ Subnet string }
			}
		}
	}
	if err := json.Unmarshal(render(t, 3, state.Config{})["cni/10-bridge.conflist"], &config); err != nil {
		t.Fatal(err)
	}
	if got, want := config.Plugins[0].IPAM.Ranges[0][0].Subnet, slot.New(4).PodNet(3).String(); got != want {
		t.Errorf("subnet = %s, want %s", got, want)
	}
}

func TestContainerdNeedsNoCapability(t *testing.T) {
	toml := string(render(t, 1, state.Config{})["containerd.toml"])
	for _, want := range []string{
		"restrict_oom_score_adj = true", `BinaryName = "/usr/sbin/runc"`, `bin_dirs = ["/usr/lib/cni"]`,
		`address = "/run/otto4/n1/containerd.sock"`, `sandbox = "` + toolchain.PauseImage + `"`,
	} {
		if !strings.Contains(toml, want) {
			t.Errorf("no %s in\n%s", want, toml)
		}
	}
}
