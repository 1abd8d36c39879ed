// Package controlplane runs etcd, the API server, the controllers and the
// scheduler of a cluster as plain processes of this machine.
package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/ottoscaler/ottoscaler/test/cluster/api"
	"github.com/ottoscaler/ottoscaler/test/cluster/pki"
	"github.com/ottoscaler/ottoscaler/test/cluster/process"
	"github.com/ottoscaler/ottoscaler/test/cluster/slot"
	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

// readyTimeout is generous: on a machine that is busy with something else the
// API server has been seen to take 12 s.
const readyTimeout = 2 * time.Minute

// A ControlPlane is that of one cluster.
type ControlPlane struct {
	Cluster state.Cluster
	Slot    slot.Slot
	Config  state.Config
	// Bin is the folder of the Kubernetes programs.
	Bin   string
	Group process.Group

	authority *pki.Authority
}

// IP is the address that the API server listens on: where nodes reach it, or
// the loopback address when none has a kubelet.
func (c *ControlPlane) IP() netip.Addr {
	if c.Config.Nodes == 0 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return c.Slot.HostIP()
}

// URL is where the API server is.
func (c *ControlPlane) URL() string { return fmt.Sprintf("https://%s:%d", c.IP(), c.Slot.APIPort()) }

// Authority signs the certificates of everybody in the cluster. Prepare must
// have succeeded.
func (c *ControlPlane) Authority() *pki.Authority { return c.authority }

// Prepare writes certificates and configuration.
func (c *ControlPlane) Prepare() error {
	authority, err := pki.Open(c.Cluster.Path("pki"), "ca")
	if err != nil {
		return err
	}
	c.authority = authority
	if _, err := pki.Open(c.Cluster.Path("pki"), "front-proxy-ca"); err != nil {
		return err
	}
	if err := pki.WriteSigningKey(c.pki("service-accounts.key"), c.pki("service-accounts.pub")); err != nil {
		return err
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, s := range []pki.Subject{
		{
			Name: "apiserver", Common: "kube-apiserver",
			IPs: []netip.Addr{loopback, c.Slot.HostIP(), c.Slot.APIServiceIP()},
			DNS: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		},
		{Name: "apiserver-kubelet-client", Common: "apiserver-kubelet-client", Groups: []string{"system:masters"}, Client: true},
		{Name: "admin", Common: "admin", Groups: []string{"system:masters"}, Client: true},
		{Name: "controllers", Common: "system:kube-controller-manager", Client: true},
		{Name: "scheduler", Common: "system:kube-scheduler", Client: true},
		{Name: "proxy", Common: "system:kube-proxy", Client: true},
		{Name: "kwok", Common: "kwok", Groups: []string{"system:masters"}, IPs: []netip.Addr{loopback}},
	} {
		if err := authority.Issue(s); err != nil {
			return err
		}
	}
	for _, name := range []string{"controllers", "scheduler", "proxy"} {
		if err := authority.WriteKubeconfig(c.Cluster.Path(name+".kubeconfig"), name, c.URL()); err != nil {
			return err
		}
	}
	if err := authority.WriteKubeconfig(c.Cluster.Kubeconfig(), "admin", c.URL()); err != nil {
		return err
	}
	b, err := yaml.Marshal(c.schedulerConfig())
	if err != nil {
		return err
	}
	return state.WriteFile(c.Cluster.Path("scheduler.yaml"), b, 0o644)
}

// Open reads what Prepare has written before.
func (c *ControlPlane) Open() error {
	authority, err := pki.Load(c.Cluster.Path("pki"), "ca")
	c.authority = authority
	return err
}

// Client returns a client with all rights. Prepare or Open must have succeeded.
func (c *ControlPlane) Client() (*api.Client, error) {
	settings, err := c.authority.Client("admin")
	if err != nil {
		return nil, err
	}
	return api.New(c.URL(), settings), nil
}

// Start starts what is not running and waits until the API server is ready.
func (c *ControlPlane) Start(ctx context.Context, client *api.Client) error {
	etcd, server := c.etcd(), c.server()
	for _, s := range []process.Spec{etcd, server} {
		if _, err := c.Group.Start(s); err != nil {
			return err
		}
	}
	err := c.Group.Await(ctx, readyTimeout, func(ctx context.Context) error { return client.Ready(ctx) }, server, etcd)
	if err != nil {
		return err
	}
	for _, s := range []process.Spec{c.controllers(), c.scheduler()} {
		if _, err := c.Group.Start(s); err != nil {
			return err
		}
	}
	// Pods are refused until the controllers have made their service account.
	return c.Group.Await(ctx, readyTimeout, func(ctx context.Context) error {
		return client.Exists(ctx, "/api/v1/namespaces/default/serviceaccounts/default")
	}, c.controllers(), c.scheduler())
}

// Specs lists the processes, in the order in which they start.
func (c *ControlPlane) Specs() []process.Spec {
	return []process.Spec{c.etcd(), c.server(), c.controllers(), c.scheduler()}
}

func (c *ControlPlane) etcd() process.Spec {
	client := fmt.Sprintf("http://127.0.0.1:%d", c.Slot.EtcdPort())
	peer := fmt.Sprintf("http://127.0.0.1:%d", c.Slot.EtcdPeerPort())
	return c.spec("etcd",
		"--name=etcd",
		"--data-dir="+c.Cluster.Path("etcd"),
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=etcd="+peer,
		"--unsafe-no-fsync", // nothing in a test cluster outlives a crash of the machine
		"--log-level=warn",
	)
}

func (c *ControlPlane) server() process.Spec {
	args := []string{
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", c.Slot.EtcdPort()),
		"--bind-address=" + c.IP().String(),
		"--advertise-address=" + c.IP().String(),
		fmt.Sprintf("--secure-port=%d", c.Slot.APIPort()),
		"--cert-dir=" + c.Cluster.Path("pki"),
		"--tls-cert-file=" + c.pki("apiserver.crt"),
		"--tls-private-key-file=" + c.pki("apiserver.key"),
		"--client-ca-file=" + c.pki("ca.crt"),
		"--service-account-key-file=" + c.pki("service-accounts.pub"),
		"--service-account-signing-key-file=" + c.pki("service-accounts.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-cluster-ip-range=" + c.Slot.ServiceNet().String(),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--kubelet-client-certificate=" + c.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + c.pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + c.pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP", // there is no DNS that knows nodes by name
		"--requestheader-client-ca-file=" + c.pki("front-proxy-ca.crt"),
		"--requestheader-username-headers=X-Remote-User",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
	}
	if c.IP().IsLoopback() {
		// A loopback address may not be an endpoint of the service "kubernetes";
		// without nodes, nobody would reach it there anyway.
		args = append(args, "--endpoint-reconciler-type=none")
	}
	return c.spec("kube-apiserver", c.gated(args)...)
}

func (c *ControlPlane) controllers() process.Spec {
	return c.spec("kube-controller-manager", c.gated([]string{
		"--kubeconfig=" + c.Cluster.Path("controllers.kubeconfig"),
		"--service-account-private-key-file=" + c.pki("service-accounts.key"),
		"--root-ca-file=" + c.pki("ca.crt"),
		"--cluster-signing-cert-file=" + c.pki("ca.crt"),
		"--cluster-signing-key-file=" + c.pki("ca.key"),
		"--use-service-account-credentials",
		"--service-cluster-ip-range=" + c.Slot.ServiceNet().String(),
		"--leader-elect=false",
		"--secure-port=0",
		"--cert-dir=" + c.Cluster.Path("pki"),
		"--kube-api-qps=500", "--kube-api-burst=1000", // must not be what scale tests measure
		"--concurrent-gc-syncs=40", "--concurrent-job-syncs=20", "--concurrent-deployment-syncs=10", "--concurrent-replicaset-syncs=20",
	})...)
}

func (c *ControlPlane) scheduler() process.Spec {
	return c.spec("kube-scheduler", c.gated([]string{
		"--config=" + c.Cluster.Path("scheduler.yaml"),
		"--secure-port=0",
		"--cert-dir=" + c.Cluster.Path("pki"),
	})...)
}

func (c *ControlPlane) schedulerConfig() map[string]any {
	return map[string]any{
		"apiVersion":     "kubescheduler.config.k8s.io/v1",
		"kind":           "KubeSchedulerConfiguration",
		"leaderElection": map[string]any{"leaderElect": false},
		"clientConnection": map[string]any{
			"kubeconfig": c.Cluster.Path("scheduler.kubeconfig"),
			"qps":        1000, "burst": 2000, // must not be what scale tests measure
		},
	}
}

func (c *ControlPlane) gated(args []string) []string {
	if c.Config.FeatureGates != "" {
		args = append(args, "--feature-gates="+c.Config.FeatureGates)
	}
	return args
}

func (c *ControlPlane) spec(component string, args ...string) process.Spec {
	return process.Spec{
		Name: component,
		Args: append([]string{filepath.Join(c.Bin, component)}, args...),
		Log:  c.Cluster.Log(component),
	}
}

func (c *ControlPlane) pki(file string) string { return c.Cluster.Path("pki", file) }
