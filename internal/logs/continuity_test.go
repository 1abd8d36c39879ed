package logs

import (
	"strings"
	"testing"
	"time"
)

func TestOnlySomeReadsCanHaveJumpedOverAFile(t *testing.T) {
	opened := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	after := func(seconds float64) time.Time { return opened.Add(time.Duration(seconds * float64(time.Second))) }
	for _, row := range []struct {
		what          string
		settled       bool    // there was a silence before
		first, second float64 // when the lines were printed, in seconds after the read was opened
		came          float64 // when the first one was read
		want          bool
	}{
		{"one line after the other", false, 20, 20.1, 40, false},
		{"the first silence of a read", false, 20, 60, 20.1, true},
		{"a worker that is silent again, and a read that waited", true, 20, 60, 20.1, false},
		{"a read that is behind, and no silence", true, 20, 21.9, 40, false},
		{"a read that is behind, over a silence as long as a rotation", true, 20, 22.1, 40, true},
		{"a silence before the read was opened", false, -60, -10, 0.1, false},
		{"a silence that ended as the read was opened", false, -60, 1.9, 0.1, false},
		{"a silence that began before the read was opened", false, -60, 2.1, 0.1, true},
	} {
		c := continuity{in: &arrivalReader{}, opened: opened, settled: row.settled}
		c.in.at.Store(after(row.came).UnixNano())
		w := newWindow(windowLimits{lines: 5, batchBytes: 4 << 10, batches: 4, bytes: 16 << 10, linger: time.Hour}, &budget{limit: 1 << 20})
		w.resume(Cursor{})
		if c.suspects(after(row.first).UnixNano(), w) {
			t.Errorf("%s: the first line is no jump", row.what)
		}
		if got := c.suspects(after(row.second).UnixNano(), w); got != row.want {
			t.Errorf("%s: got %t, want %t", row.what, got, row.want)
		}
	}
}

func TestLinesThatWereTakenTogetherAreNoJump(t *testing.T) {
	opened := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	stamp := func(seconds int) int64 { return opened.Add(time.Duration(seconds) * time.Second).UnixNano() }
	w := newWindow(windowLimits{lines: 500, batchBytes: 4 << 10, batches: 4, bytes: 16 << 10, linger: time.Hour}, &budget{limit: 1 << 20})
	w.resume(Cursor{})
	c := continuity{in: &arrivalReader{}, opened: opened}
	c.in.at.Store(opened.Add(time.Minute).UnixNano())
	c.suspects(stamp(20), w)
	for second := 20; second <= 28; second++ { // of which suspects sees the first
		if err := w.add(t.Context(), w.generation, nil, stamp(second), []byte("x\n"), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	if c.suspects(stamp(29), w) {
		t.Error("1 s after the line before it: got a jump")
	}
}

func TestLineBehindASilenceIsNeverTakenWithOthers(t *testing.T) {
	lines := newLineReader(strings.NewReader("2026-11-25T12:00:00.000000000Z a\n2026-11-25T12:00:01.900000000Z b\n2026-11-25T12:00:04.000000000Z c\n"), nil)
	if _, _, err := lines.next(); err != nil {
		t.Fatal(err)
	}
	if _, text, ok := lines.peek(); !ok || string(text) != "b\n" {
		t.Errorf("a line right behind: got %q, %t", text, ok)
	}
	lines.take()
	if _, text, ok := lines.peek(); ok {
		t.Errorf("a line behind a silence as long as a rotation: got %q", text)
	}
	if _, text, err := lines.next(); err != nil || string(text) != "c\n" {
		t.Errorf("the same by itself: got %q, %v", text, err)
	}
}

func TestABeginningThatWasNotSeenIsDoubtful(t *testing.T) {
	began := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	after := func(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }
	const none = -1
	for _, row := range []struct {
		what           string
		opened         float64
		line           float64 // when the first one was printed, or none
		lasted         float64 // how long the container ran, or none if it runs
		silentFrom, to float64 // an earlier read without a line, or none
		unknown        bool    // the cluster does not tell when it began
		want           bool
	}{
		{"read at once", 0.3, 30, none, none, none, false, false},
		{"read at once, nothing printed", 0.3, none, 60, none, none, false, false},
		{"read late, and the first line is as old as the container", 30, 0.2, none, none, none, false, false},
		{"read late, and the first line is not", 30, 12, none, none, none, false, true},
		{"read late, and there is none", 30, none, 20, none, none, false, true},
		{"read late, and there is none of a container that was there for a moment", 30, none, 1, none, none, false, false},
		{"read again at once after a read without a line", 41, 50, none, 0.3, 40, false, false},
		{"read again late after a read without a line", 50, 60, none, 0.3, 40, false, true},
		{"read late again and again", 50, 60, none, 30, 49.9, false, true},
		{"the cluster does not tell", 30, 12, none, none, none, true, false},
	} {
		var b beginning
		state := State{Began: began, Ended: row.lasted != none}
		if row.unknown {
			state.Began = time.Time{}
		}
		if row.lasted != none {
			state.Finished = after(row.lasted)
		}
		var stamp int64
		if row.line != none {
			stamp = after(row.line).UnixNano()
		}
		if row.silentFrom != none {
			b.doubt(state, after(row.silentFrom), stamp) // as each read asks
			b.silent(after(row.silentFrom), after(row.to), false)
		}
		if why, got := b.doubt(state, after(row.opened), stamp); got != row.want || got != strings.Contains(why, "late") {
			t.Errorf("%s: got %t, %q, want %t", row.what, got, why, row.want)
		}
	}
}

func TestBeginningThatANodeMayHavePutAwayLeavesAGap(t *testing.T) {
	r := newTestRig(t)
	now := time.Now()
	r.state.Began = now.Add(-time.Minute)
	want := append([]string{""}, r.print(now.Add(-30*time.Second), now)...)
	r.start(t.Context())
	r.await(3)
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	if got := r.check(want).Gaps; len(got) != 1 || got[0].Sequence != 1 || got[0].GetReason() != reasonRotated || got[0].GetFromTime() != nil {
		t.Errorf("gaps are %v, want one before the first line", got)
	}
	r.wantCount(r.metrics.gaps.WithLabelValues(reasonRotated), "gaps", 1)
}

func TestEmptyLogThatWasReadTooLateLeavesAGap(t *testing.T) {
	r := newTestRig(t)
	r.state.Began = time.Now().Add(-time.Minute)
	r.start(t.Context())
	r.end()
	if err := r.finish(); err != nil {
		t.Errorf("following: %v", err)
	}
	r.check([]string{""})
	r.wantCount(r.metrics.gaps.WithLabelValues(reasonRotated), "gaps", 1)
}
