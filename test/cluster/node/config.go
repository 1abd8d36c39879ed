package node

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"

	"github.com/ottoscaler/ottoscaler/test/cluster/toolchain"
)

type object = map[string]any

//go:embed containerd.toml.tmpl
var containerdConfig string

var containerdTemplate = template.Must(template.New("containerd.toml").Parse(containerdConfig))

// files renders the node's configuration, by name of the file.
func (n *Node) files(ca, certificate, key string) (map[string][]byte, error) {
	kubelet, err := n.kubeletConfig(ca, certificate, key)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{
		// Pods whose DNS policy is Default get this one: there is no DNS server,
		// and the host's may be one that pods cannot reach.
		"resolv.conf": nil,
	}
	for name, config := range map[string]object{"kubelet.yaml": kubelet, "kube-proxy.yaml": n.proxyConfig()} {
		if files[name], err = yaml.Marshal(config); err != nil {
			return nil, err
		}
	}
	if files["cni/10-bridge.conflist"], err = json.MarshalIndent(n.pluginConfig(), "", "  "); err != nil {
		return nil, err
	}
	var toml bytes.Buffer
	err = containerdTemplate.Execute(&toml, map[string]string{
		"Root": n.path("containerd"), "State": n.run(), "Socket": n.socket(), "Pause": toolchain.PauseImage,
		"Plugins": n.System.Plugins, "PluginConfig": n.path("cni"), "Runc": n.System.Runc,
	})
	files["containerd.toml"] = toml.Bytes()
	return files, err
}

func (n *Node) kubeletConfig(ca, certificate, key string) (object, error) {
	config := object{
		"apiVersion":                "kubelet.config.k8s.io/v1beta1",
		"kind":                      "KubeletConfiguration",
		"address":                   n.Slot.NodeIP(n.Index).String(),
		"port":                      10250,
		"readOnlyPort":              0,
		"tlsCertFile":               certificate,
		"tlsPrivateKeyFile":         key,
		"authentication":            object{"anonymous": object{"enabled": false}, "webhook": object{"enabled": true}, "x509": object{"clientCAFile": ca}},
		"authorization":             object{"mode": "Webhook"},
		"containerRuntimeEndpoint":  "unix://" + n.socket(),
		"cgroupDriver":              "cgroupfs",
		"cgroupRoot":                n.cgroupPath(),
		"failCgroupV1":              false, // version 1 is deprecated, but some machines have no other
		"failSwapOn":                false,
		"enableSystemLogHandler":    true, // it shows /var/log, which is the node's own
		"resolvConf":                n.path("resolv.conf"),
		"clusterDomain":             "cluster.local",
		"maxPods":                   250,
		"serializeImagePulls":       false,
		"makeIPTablesUtilChains":    false,
		"eventRecordQPS":            0, // no limit
		"kubeAPIQPS":                200,
		"kubeAPIBurst":              400,
		"nodeStatusUpdateFrequency": "4s",
		// An image that was loaded cannot be pulled again: never collect it.
		"imageGCHighThresholdPercent": 100,
		"evictionHard":                object{"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
	}
	if size := n.Config.ContainerLogMaxSize; size != "" {
		config["containerLogMaxSize"] = size
		config["containerLogMonitorInterval"] = "3s" // the least that is allowed: a small log fills fast
	}
	gates, err := parseGates(n.Config.FeatureGates)
	if len(gates) > 0 {
		config["featureGates"] = gates
	}
	return config, err
}

func (n *Node) proxyConfig() object {
	config := object{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "nftables",
		"hostnameOverride":   n.Name(),
		"clusterCIDR":        n.Slot.PodNets().String(),
		"clientConnection":   object{"kubeconfig": n.Cluster.Path("proxy.kubeconfig")},
		"conntrack":          object{"maxPerCore": 0, "min": 0}, // the limits are the host's
		"healthzBindAddress": "127.0.0.1:10256",
		"metricsBindAddress": "127.0.0.1:10249",
	}
	// Prepare has parsed them for the kubelet's configuration already.
	if gates, err := parseGates(n.Config.FeatureGates); err == nil && len(gates) > 0 {
		config["featureGates"] = gates
	}
	return config
}

func (n *Node) pluginConfig() object {
	return object{
		"cniVersion": "1.0.0",
		"name":       "cluster",
		"plugins": []object{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
				"ipam": object{
					"type": "host-local", "dataDir": n.path("ipam"),
					"ranges": [][]object{{{"subnet": n.Slot.PodNet(n.Index).String()}}},
					"routes": []object{{"dst": "0.0.0.0/0"}},
				},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}
}

// parseGates reads "Name=true,Other=false".
func parseGates(s string) (map[string]bool, error) {
	gates := map[string]bool{}
	for gate := range strings.SplitSeq(s, ",") {
		if gate == "" {
			continue
		}
		name, value, _ := strings.Cut(gate, "=")
		on, err := strconv.ParseBool(value)
		if err != nil {
			return nil, fmt.Errorf("feature gate %q: want Name=true or Name=false", gate)
		}
		gates[name] = on
	}
	return gates, nil
}
