package environment

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"text/template"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
)

//go:embed values.yaml.tmpl
var valuesTemplate string

// Values returns the chart's values of the user, as a new values file has them.
// There is nothing secret in them: the password is in [RedisSecret].
func (e *Environment) Values() ([]byte, error) {
	t, err := template.New("values").Option("missingkey=error").Parse(valuesTemplate)
	if err != nil {
		return nil, fmt.Errorf("reading the template of the values: %w", err)
	}
	var out bytes.Buffer
	if err := t.Execute(&out, map[string]string{
		"User": e.Slug, "RedisHost": e.RedisContainer(), "RedisSecret": RedisSecret, "LogServer": e.LogContainer(),
	}); err != nil {
		return nil, fmt.Errorf("filling the template of the values: %w", err)
	}
	return out.Bytes(), nil
}

// EnsureValues writes the user's values file, unless there is one, and checks it
// against the chart's schema. It tells what it did in a word.
func (e *Environment) EnsureValues() (did string, err error) {
	did = "kept"
	if _, err := os.Stat(e.ValuesFile()); errors.Is(err, fs.ErrNotExist) {
		content, err := e.Values()
		if err != nil {
			return "", err
		}
		if err := writeFile(e.ValuesFile(), content, 0o644); err != nil {
			return "", err
		}
		did = "made"
	}
	return did, e.checkValues()
}

// checkValues says what the chart's schema has against the values file.
func (e *Environment) checkValues() error {
	chart, err := loader.Load(filepath.Dir(e.ValuesFile()))
	if err != nil {
		return fmt.Errorf("loading the chart: %w", err)
	}
	values, err := chartutil.ReadValuesFile(e.ValuesFile())
	if err != nil {
		return fmt.Errorf("reading %s: %w", e.ValuesFile(), err)
	}
	merged, err := chartutil.CoalesceValues(chart, values)
	if err != nil {
		return fmt.Errorf("reading %s: %w", e.ValuesFile(), err)
	}
	if err := chartutil.ValidateAgainstSchema(chart, merged); err != nil {
		return fmt.Errorf("%s: %w", e.ValuesFile(), err)
	}
	return nil
}
