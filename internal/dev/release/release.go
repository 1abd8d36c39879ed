// Package release installs the chart through Helm's Go SDK, as `helm upgrade
// --install --wait` and `helm uninstall --wait --cascade foreground` would. It
// waits by itself: sooner, and no longer than there is hope.
package release

import (
	"context"
	"errors"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/cli"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/getter"
	"helm.sh/helm/v3/pkg/storage/driver"
)

// Options say what to install, and where.
type Options struct {
	// Kubeconfig is the path of the file that leads to the cluster.
	Kubeconfig string
	// Namespace of the release. It is created.
	Namespace string
	// Name of the release.
	Name string
	// Chart is the chart's folder.
	Chart string
	// ValuesFiles are applied in their order, as by --values.
	ValuesFiles []string
	// Set and SetString are applied last, as by --set and --set-string.
	Set, SetString []string
	// SetJSON are like Set, with JSON as their values, as by --set-json.
	SetJSON []string
	// Timeout bounds the wait for the release to be ready.
	Timeout time.Duration
}

// Apply installs the release, or upgrades the one that is there, and waits until
// it is ready.
func Apply(ctx context.Context, opts Options) error {
	cfg, settings, err := configuration(opts)
	if err != nil {
		return err
	}
	chart, err := loader.Load(opts.Chart)
	if err != nil {
		return fmt.Errorf("loading chart %s: %w", opts.Chart, err)
	}
	vals, err := (&values.Options{ValueFiles: opts.ValuesFiles, Values: opts.Set, StringValues: opts.SetString, JSONValues: opts.SetJSON}).MergeValues(getter.All(settings))
	if err != nil {
		return fmt.Errorf("reading values: %w", err)
	}
	if _, err := action.NewHistory(cfg).Run(opts.Name); errors.Is(err, driver.ErrReleaseNotFound) {
		install := action.NewInstall(cfg)
		install.ReleaseName, install.Namespace, install.CreateNamespace = opts.Name, opts.Namespace, true
		install.Timeout = opts.Timeout
		if _, err := install.RunWithContext(ctx, chart, vals); err != nil {
			return fmt.Errorf("installing release %s: %w", opts.Name, err)
		}
		return await(ctx, opts)
	}
	upgrade := action.NewUpgrade(cfg)
	upgrade.Namespace, upgrade.Timeout = opts.Namespace, opts.Timeout
	if _, err := upgrade.RunWithContext(ctx, opts.Name, chart, vals); err != nil {
		return fmt.Errorf("upgrading release %s: %w", opts.Name, err)
	}
	return await(ctx, opts)
}

// A State is what is known of an installed release.
type State struct {
	// Revision counts its installs and upgrades.
	Revision int
	// Status is Helm's word for it, such as "deployed".
	Status string
	// Updated is when that was.
	Updated time.Time
}

// Look returns the state of a release, or false if there is none.
func Look(opts Options) (State, bool, error) {
	cfg, _, err := configuration(opts)
	if err != nil {
		return State{}, false, err
	}
	r, err := action.NewStatus(cfg).Run(opts.Name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return State{}, false, nil
	}
	if err != nil {
		return State{}, false, fmt.Errorf("looking at release %s: %w", opts.Name, err)
	}
	return State{Revision: r.Version, Status: r.Info.Status.String(), Updated: r.Info.LastDeployed.Time}, true, nil
}

// Remove uninstalls the release and waits until its objects are gone. One that is
// not there is no error.
func Remove(opts Options) error {
	cfg, _, err := configuration(opts)
	if err != nil {
		return err
	}
	uninstall := action.NewUninstall(cfg)
	uninstall.Wait, uninstall.Timeout, uninstall.IgnoreNotFound = true, opts.Timeout, true
	uninstall.DeletionPropagation = "foreground" // else the main pod outlives its Deployment a little
	if _, err := uninstall.Run(opts.Name); err != nil {
		return fmt.Errorf("uninstalling release %s: %w", opts.Name, err)
	}
	return nil
}

func configuration(opts Options) (*action.Configuration, *cli.EnvSettings, error) {
	settings := cli.New()
	settings.KubeConfig = opts.Kubeconfig
	settings.SetNamespace(opts.Namespace)
	cfg := new(action.Configuration)
	quiet := func(string, ...any) {} // Helm's debug lines; what matters comes back as an error
	if err := cfg.Init(settings.RESTClientGetter(), opts.Namespace, "secret", quiet); err != nil {
		return nil, nil, fmt.Errorf("preparing Helm: %w", err)
	}
	return cfg, settings, nil
}
