package logs

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"
)

// With the server away, all windows together stay near the budget, however many
// there are and however large their batches used to be.
func TestWindowsTogetherStayWithinTheBudget(t *testing.T) {
	const (
		windows = 500
		limit   = 4 << 20
		// What leastBatch takes in memory, with its line lengths and times and the
		// room that slices grow by.
		least = 3 * leastBatch
	)
	for name, text := range map[string][]byte{
		"full lines":  append(bytes.Repeat([]byte("x"), 500), '\n'),
		"empty lines": {'\n'},
	} {
		t.Run(name, func(t *testing.T) {
			total := &budget{limit: 1 << 40}
			all := make([]*window, windows)
			for i := range all {
				w := newWindow(windowLimits{lines: 500, batchBytes: MaxBatchBytes, batches: 32, bytes: 4 << 20, linger: time.Hour}, total)
				w.resume(Cursor{})
				for len(w.fresh) == 0 || !w.fresh[0].sealed { // in better times
					if err := w.add(t.Context(), w.generation, nil, 1, text, 0, nil); err != nil {
						t.Fatalf("adding a line: %v", err)
					}
				}
				w.void(Cursor{}) // and it was acknowledged
				all[i] = w
			}
			if used := total.used.Load(); used != 0 {
				t.Fatalf("%d bytes are charged for nothing", used)
			}

			total.limit = limit
			full, cancel := context.WithCancel(t.Context())
			cancel() // a window without room returns at once
			for i, w := range all {
				var err error
				for err == nil {
					err = w.add(full, w.generation, nil, 1, text, 0, nil)
				}
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("adding a line: %v", err)
				}
				if len(w.fresh) == 0 {
					t.Errorf("window %d has nothing: its log stands still", i)
				}
			}
			held := 0
			for _, w := range all {
				for _, b := range w.fresh {
					held += cap(b.data) + 4*cap(b.lengths) + 4*cap(b.deltas)
				}
			}
			if most := limit + 2*MaxBatchBytes + windows*least; held > most {
				t.Errorf("the windows hold %d bytes, want at most %d", held, most)
			}
			if used := int(total.used.Load()); used < held {
				t.Errorf("%d bytes are charged, %d are held", used, held)
			}
			for _, w := range all {
				w.release(true)
			}
			if used := total.used.Load(); used != 0 {
				t.Errorf("%d bytes are charged for nothing", used)
			}
		})
	}
}

// An open batch that is large when others exceed the budget grows no further.
func TestOpenBatchStopsGrowingOverTheBudget(t *testing.T) {
	total := &budget{limit: 64 << 10}
	w := newWindow(windowLimits{lines: 500, batchBytes: MaxBatchBytes, batches: 32, bytes: 4 << 20, linger: time.Hour}, total)
	w.resume(Cursor{})
	text := append(bytes.Repeat([]byte("x"), 1000), '\n')
	for range 20 {
		if err := w.add(t.Context(), w.generation, nil, 1, text, 0, nil); err != nil {
			t.Fatalf("adding a line: %v", err)
		}
	}
	total.used.Add(64 << 10) // others
	full, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.add(full, w.generation, nil, 1, text, 0, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("adding to a large batch over the budget: got %v, want it to wait", err)
	}
	if !w.fresh[0].sealed {
		t.Error("the batch is not on its way")
	}
}
