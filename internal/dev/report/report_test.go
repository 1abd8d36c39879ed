package report_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/dev/report"
)

func TestATableIsPrintedAndWritten(t *testing.T) {
	type row struct {
		Name  string  `json:"name"`
		Value float64 `json:"value"`
	}
	file := filepath.Join(t.TempDir(), "new", "table.json")
	var out strings.Builder
	err := report.Write(&out, file, []string{"NAME", "VALUE"}, []row{{"short", 1.5}, {"much longer", 2}}, func(r row) []string {
		return []string{r.Name, "x"}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "NAME          VALUE\nshort         x\nmuch longer   x\n"; got != want {
		t.Errorf("table: got\n%swant\n%s", got, want)
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := "[\n  {\n    \"name\": \"short\",\n    \"value\": 1.5\n  },\n  {\n    \"name\": \"much longer\",\n    \"value\": 2\n  }\n]\n"; string(written) != want {
		t.Errorf("file: got\n%swant\n%s", written, want)
	}
}

func TestATableWithoutRowsIsAnErrorAndWritesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "table.json")
	if err := report.Write(io.Discard, file, nil, []int{}, nil); err == nil {
		t.Error("writing no rows: got no error")
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("writing no rows: the file was written")
	}
}

func TestOnlySelectsByPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want, wantErr bool
	}{
		{pattern: "", name: "scaler killed", want: true},
		{pattern: "scaler*", name: "scaler killed", want: true},
		{pattern: "scaler", name: "scaler killed"},
		{pattern: "[", name: "scaler killed", wantErr: true},
	} {
		got, err := report.Selected(c.pattern, c.name)
		if got != c.want || (err != nil) != c.wantErr {
			t.Errorf("ONLY=%q, %q: got %v, %v, want %v, error %v", c.pattern, c.name, got, err, c.want, c.wantErr)
		}
	}
}

func TestQuantilesAreOfTheSample(t *testing.T) {
	sample := []time.Duration{4, 2, 1, 3}
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 4, 1: 4} {
		if got := report.Quantile(sample, q); got != want {
			t.Errorf("quantile %v of 1 to 4: got %d, want %d", q, got, want)
		}
	}
	if got := report.Quantile(nil, 0.5); got != 0 {
		t.Errorf("quantile of nothing: got %v, want 0", got)
	}
}
