// Package report writes the tables of `make bench` and `make chaos`: aligned text
// for people, JSON for programs.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Write prints rows as a table with a header and writes them to file as a JSON
// array. A table without rows is an error: the ONLY variable selected nothing.
func Write[R any](out io.Writer, file string, header []string, rows []R, cells func(R) []string) error {
	if len(rows) == 0 {
		return errors.New("no row has a name that ONLY selects")
	}
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, strings.Join(header, "\t"))
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(cells(row), "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("printing the table: %w", err)
	}
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the table: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

// Selected tells whether the pattern of the ONLY variable, as path.Match takes
// it, selects a name. An empty pattern selects all.
func Selected(pattern, name string) (bool, error) {
	if pattern == "" {
		return true, nil
	}
	ok, err := path.Match(pattern, name)
	if err != nil {
		return false, fmt.Errorf("ONLY=%s: %w", pattern, err)
	}
	return ok, nil
}

// Quantile returns the q-quantile of the durations by the nearest rank, or 0
// when there are none. It sorts its argument.
func Quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}

// Milliseconds is d in milliseconds, with the fraction that tables show.
func Milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}
