package release

import (
	"os"
	"path/filepath"
	"testing"
)

func TestValuesOfTheOptionsComeBeforeThoseOfTheChart(t *testing.T) {
	chart := t.TempDir()
	mine := filepath.Join(t.TempDir(), "mine.yaml")
	for file, content := range map[string]string{
		filepath.Join(chart, "Chart.yaml"):  "apiVersion: v2\nname: c\nversion: 1.0.0\n",
		filepath.Join(chart, "values.yaml"): "a: {chart: 1x, file: 1x, set: 1x}\n",
		mine:                                "a: {file: 2x, set: 2x}\n",
	} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{Chart: chart, ValuesFiles: []string{mine}, SetJSON: []string{`a.set="3x"`}}
	for path, want := range map[string]string{"a.chart": "1x", "a.file": "2x", "a.set": "3x"} {
		if got, err := Value(opts, path); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %s", path, got, err, want)
		}
	}
	if got, err := Value(opts, "a.none"); err == nil {
		t.Errorf("a value that is nowhere: got %v, want an error", got)
	}
}
