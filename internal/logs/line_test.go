package logs

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// readLines reads a log to its end, piece by piece.
func readLines(log string) (texts []string, stamps []int64, cuts int, err error) {
	r := newLineReader(iotest.HalfReader(strings.NewReader(log)), func() { cuts++ })
	for {
		stamp, text, err := r.next()
		if err != nil && !errors.Is(err, errTorn) {
			return texts, stamps, cuts, err
		}
		texts = append(texts, strings.TrimSuffix(string(text), "\n"))
		stamps = append(stamps, stamp)
	}
}

func TestStampsOfAllKindsAreRead(t *testing.T) {
	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for stamp, want := range map[string]time.Time{
		"2026-11-22T12:00:00.000000000Z":      noon,
		"2026-11-22T12:00:00.123456789Z":      noon.Add(123456789),
		"2026-11-22T12:00:00.5Z":              noon.Add(500 * time.Millisecond),
		"2026-11-22T12:00:00Z":                noon,
		"2026-11-22T21:00:00.000000001+09:00": noon.Add(1),
		"2026-11-22T06:30:00.000000001-05:30": noon.Add(1),
	} {
		log := stamp + " one\n" + stamp + " two \n" + stamp + " \n" + stamp + " é\xff\x00\r\n"
		texts, stamps, _, err := readLines(log)
		if !errors.Is(err, io.EOF) || strings.Join(texts, "|") != "one|two ||é\xff\x00\r" {
			t.Errorf("%s: read %q, %v", stamp, texts, err)
		}
		for _, got := range stamps {
			if got != want.UnixNano() {
				t.Errorf("%s: read as %v", stamp, time.Unix(0, got).UTC())
			}
		}
	}
}

func TestTextWithoutAStampIsANotice(t *testing.T) {
	for _, log := range []string{"rpc error: no such container\n", "unable", "\n", "2026-11-22T12:00:00.000000000 x\n", strings.Repeat("x", 100000)} {
		_, _, _, err := readLines(log)
		var notice *noticeError
		if !errors.As(err, &notice) {
			t.Errorf("%.30q: got %v, want a notice", log, err)
		}
	}
}

func TestLongLinesAreCutAtTheirBound(t *testing.T) {
	const stamp = "2026-11-22T12:00:00.000000000Z "
	long := strings.Repeat("0123456789abcdef", (2*maxLine+1000)/16)
	for name, tail := range map[string]string{"with line end": "\n", "torn": ""} {
		texts, stamps, cuts, err := readLines(stamp + "before\n" + stamp + long + "\n" + stamp + long + tail)
		if !errors.Is(err, io.EOF) || cuts < 2 || len(texts) != 3+cuts {
			t.Fatalf("%s: %d lines, %d cuts, %v", name, len(texts), cuts, err)
		}
		if got := strings.Join(texts, ""); got != "before"+long+long {
			t.Errorf("%s: the parts of the long lines do not make them whole", name)
		}
		for i, text := range texts {
			if len(text) > maxLine+readBuffer {
				t.Errorf("%s: part %d has %d bytes", name, i, len(text))
			}
			if stamps[i] != stamps[0] {
				t.Errorf("%s: part %d has another stamp", name, i)
			}
		}
	}
}

func TestSecondsAreCountedWhenStampsStepBack(t *testing.T) {
	var s seconds
	for i, step := range []struct {
		second int64
		want   uint32
	}{{10, 1}, {10, 2}, {11, 1}, {10, 3}, {11, 2}, {13, 1}, {11, 3}, {13, 2}} {
		if got := s.count(step.second * int64(time.Second)); got != step.want {
			t.Errorf("step %d: second %d has %d lines, want %d", i, step.second, got, step.want)
		}
	}
}
