// Package kubeconfig finds the API server, for every program in the same way.
package kubeconfig

import (
	"fmt"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Load returns the configuration of the cluster that a kubeconfig file names. Like
// kubectl, it takes a list of files as one. An empty path means the cluster that
// this process runs in, as its pod's service account.
func Load(path string) (*rest.Config, error) {
	if path == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("finding the cluster: %w (outside of a cluster, set KUBECONFIG)", err)
		}
		return config, nil
	}
	rules := &clientcmd.ClientConfigLoadingRules{Precedence: filepath.SplitList(path)}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster in kubeconfig %s: %w", path, err)
	}
	return config, nil
}
