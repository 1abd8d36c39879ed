// Package release installs the chart through Helm's Go SDK, as `helm upgrade
// --install --wait` and `helm uninstall --wait --cascade foreground` would. It
// waits by itself: sooner, and no longer than there is hope.
package release

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/cli"
	"helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/getter"
	"helm.sh/helm/v3/pkg/release"
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
	// PodAnnotations are added to those that the values give the main pod. They tell
	// of what runs in it, and do not count when [Current] compares.
	PodAnnotations map[string]string
	// Timeout bounds the wait for the release to be ready.
	Timeout time.Duration
}

// labelInputs is a label of a release: a hash of the chart and the values that it
// was made of.
const labelInputs = "ottoscaler-inputs"

// inputs loads the chart and the values, and hashes both.
func (opts Options) inputs(settings *cli.EnvSettings) (_ *chart.Chart, vals map[string]any, hash string, err error) {
	loaded, err := loader.Load(opts.Chart)
	if err != nil {
		return nil, nil, "", fmt.Errorf("loading chart %s: %w", opts.Chart, err)
	}
	merge := values.Options{ValueFiles: opts.ValuesFiles, Values: opts.Set, StringValues: opts.SetString, JSONValues: opts.SetJSON}
	if vals, err = merge.MergeValues(getter.All(settings)); err != nil {
		return nil, nil, "", fmt.Errorf("reading values: %w", err)
	}
	digest := sha256.New()
	files := slices.SortedFunc(slices.Values(loaded.Raw), func(a, b *chart.File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		fmt.Fprintf(digest, "%s %d\n%s", f.Name, len(f.Data), f.Data)
	}
	if err := json.NewEncoder(digest).Encode(vals); err != nil { // which sorts keys
		return nil, nil, "", fmt.Errorf("reading values: %w", err)
	}
	annotations, _ := vals["podAnnotations"].(map[string]any)
	annotations = maps.Clone(annotations)
	if annotations == nil {
		annotations = map[string]any{}
	}
	for name, value := range opts.PodAnnotations {
		annotations[name] = value
	}
	vals["podAnnotations"] = annotations
	return loaded, vals, fmt.Sprintf("%x", digest.Sum(nil))[:40], nil
}

// Value returns one of the values that the release would be made of, the chart's own
// or what the options say otherwise, by its path such as "image.tag".
func Value(opts Options, path string) (any, error) {
	loaded, vals, _, err := opts.inputs(cli.New())
	if err != nil {
		return nil, err
	}
	merged, err := chartutil.CoalesceValues(loaded, vals)
	if err != nil {
		return nil, fmt.Errorf("reading values: %w", err)
	}
	value, err := merged.PathValue(path)
	if err != nil {
		return nil, fmt.Errorf("reading values: %w", err)
	}
	return value, nil
}

// Apply installs the release, or upgrades the one that is there, and waits until
// it is ready.
func Apply(ctx context.Context, opts Options) error {
	cfg, settings, err := configuration(opts)
	if err != nil {
		return err
	}
	loaded, vals, hash, err := opts.inputs(settings)
	if err != nil {
		return err
	}
	labels := map[string]string{labelInputs: hash}
	if _, err := action.NewHistory(cfg).Run(opts.Name); errors.Is(err, driver.ErrReleaseNotFound) {
		install := action.NewInstall(cfg)
		install.ReleaseName, install.Namespace, install.CreateNamespace = opts.Name, opts.Namespace, true
		install.Timeout, install.Labels = opts.Timeout, labels
		if _, err := install.RunWithContext(ctx, loaded, vals); err != nil {
			return fmt.Errorf("installing release %s: %w", opts.Name, err)
		}
		return await(ctx, opts, rolledOut)
	}
	upgrade := action.NewUpgrade(cfg)
	upgrade.Namespace, upgrade.Timeout, upgrade.Labels = opts.Namespace, opts.Timeout, labels
	if _, err := upgrade.RunWithContext(ctx, opts.Name, loaded, vals); err != nil {
		return fmt.Errorf("upgrading release %s: %w", opts.Name, err)
	}
	return await(ctx, opts, rolledOut)
}

// Current tells whether the release is deployed as [Apply] would deploy it: by an
// Apply of the same chart and the same values.
func Current(opts Options) (bool, error) {
	cfg, settings, err := configuration(opts)
	if err != nil {
		return false, err
	}
	_, _, hash, err := opts.inputs(settings)
	if err != nil {
		return false, err
	}
	last, err := cfg.Releases.Last(opts.Name)
	if errors.Is(err, driver.ErrReleaseNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking at release %s: %w", opts.Name, err)
	}
	return last.Info.Status == release.StatusDeployed && last.Labels[labelInputs] == hash, nil
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
