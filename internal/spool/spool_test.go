package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// fatalist is what tests of all kinds have in common.
type fatalist interface {
	Helper()
	Fatalf(format string, args ...any)
}

func open(t fatalist, dir string, options Options) (*Store, *Log, []byte) {
	t.Helper()
	s, err := Open(dir, options)
	if err != nil {
		t.Fatalf("opening: %v", err)
	}
	l, last, err := s.OpenLog("uid", "agent", span)
	if err != nil {
		t.Fatalf("opening a log: %v", err)
	}
	return s, l, last
}

// span says which records were folded, so that a test sees it.
func span(records [][]byte) []byte {
	first, _ := spanOf(string(records[0]))
	_, last := spanOf(string(records[len(records)-1]))
	return fmt.Appendf(nil, "%d-%d", first, last)
}

// spanOf returns the first and the last number that a record stands for.
func spanOf(record string) (first, last int) {
	if n, _ := fmt.Sscanf(record, "%d-%d", &first, &last); n == 1 {
		last = first
	}
	return first, last
}

func appendText(t fatalist, l *Log, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if _, err := l.Append([]byte(text)); err != nil {
			t.Fatalf("appending: %v", err)
		}
	}
}

// rest reads what is left.
func rest(t fatalist, l *Log) []string {
	t.Helper()
	var all []string
	for {
		record, _, err := l.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("reading: %v", err)
		}
		all = append(all, string(record))
	}
}

func numbered(from, to int) []string {
	var texts []string
	for i := from; i <= to; i++ {
		texts = append(texts, fmt.Sprintf("%03d", i))
	}
	return texts
}

// checkUsed compares what is counted with what is on disk.
func checkUsed(t fatalist, s *Store) {
	t.Helper()
	onDisk, err := sizeOf(s.dir)
	if err != nil {
		t.Fatalf("measuring: %v", err)
	}
	if got := s.Used(); got != onDisk {
		t.Fatalf("%d bytes are counted, %d are on disk", got, onDisk)
	}
}

func TestRecordsComeBackInOrderAndGoWhenTheyAreDoneWith(t *testing.T) {
	s, l, _ := open(t, t.TempDir(), Options{SegmentBytes: 50})
	appendText(t, l, numbered(1, 20)...)
	if got, want := rest(t, l), numbered(1, 20); !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	checkUsed(t, s)
	before := s.Used()
	if err := l.Trim(9); err != nil {
		t.Fatal(err)
	}
	if s.Used() >= before {
		t.Errorf("%d bytes are used after nine records are done with, %d before", s.Used(), before)
	}
	appendText(t, l, numbered(21, 22)...)
	if got, want := rest(t, l), numbered(21, 22); !slices.Equal(got, want) {
		t.Errorf("read %v, want %v", got, want)
	}
	if err := l.Trim(22); err != nil {
		t.Fatal(err)
	}
	if s.Used() != 0 {
		t.Errorf("%d bytes are used by nothing", s.Used())
	}
	checkUsed(t, s)
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(s.dir); err != nil || len(entries) > 0 {
		t.Errorf("a removed log leaves %v, %v", entries, err)
	}
}

// A process that is killed in the middle of a write leaves any part of it.
func TestTornRecordIsCutOffWhereverItIsTorn(t *testing.T) {
	whole := t.TempDir()
	_, l, _ := open(t, whole, Options{SegmentBytes: 60})
	appendText(t, l, numbered(1, 7)...)
	last := l.last()
	data, err := os.ReadFile(l.path(last.number))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(data) {
		for _, tail := range []string{"", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"} { // a disk may leave zeros
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "uid", "agent", filepath.Base(l.path(last.number)))
			if err := os.WriteFile(path, append(data[:cut:cut], tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			s, l, newest := open(t, dir, Options{SegmentBytes: 60})
			kept := int(last.first) - 1 + cut/11 //nolint:gosec // a small number; a record takes 11 bytes
			if want := numbered(kept, kept)[0]; string(newest) != want {
				t.Fatalf("cut at %d: the last record is %q, want %q", cut, newest, want)
			}
			appendText(t, l, "next")
			if got, want := rest(t, l), append(numbered(1, kept), "next"); !slices.Equal(got, want) {
				t.Fatalf("cut at %d: read %v, want %v", cut, got, want)
			}
			checkUsed(t, s)
		}
	}
}

func TestNoByteMayBeWrong(t *testing.T) {
	whole := t.TempDir()
	_, l, _ := open(t, whole, Options{SegmentBytes: 60})
	appendText(t, l, numbered(1, 12)...)
	for _, s := range l.segments {
		data, err := os.ReadFile(l.path(s.number))
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			wrong := bytes.Clone(data)
			wrong[i] ^= 0x10
			if err := os.WriteFile(filepath.Join(dir, "uid", "agent", filepath.Base(l.path(s.number))), wrong, 0o600); err != nil {
				t.Fatal(err)
			}
			opened, l, _ := open(t, dir, Options{SegmentBytes: 60})
			want := numbered(1, int(s.first)-1+i/11) //nolint:gosec // small
			if got := rest(t, l); !slices.Equal(got, want) {
				t.Fatalf("byte %d of segment %d is wrong: read %v, want %v", i, s.number, got, want)
			}
			checkUsed(t, opened)
		}
	}
}

func TestFullDiskLosesNoRecord(t *testing.T) {
	s, l, _ := open(t, t.TempDir(), Options{})
	appendText(t, l, "one", "two")
	for part := range 11 {
		s.write = func(path string, data []byte, offset int64) error {
			return errors.Join(writeAt(path, data[:part], offset), syscall.ENOSPC)
		}
		if _, err := l.Append([]byte("not")); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("appending to a full disk: got %v", err)
		}
		checkUsed(t, s)
	}
	s.write = writeAt
	appendText(t, l, "three")
	l.Close()
	_, l, last := open(t, s.dir, Options{})
	if got, want := rest(t, l), []string{"one", "two", "three"}; !slices.Equal(got, want) || string(last) != "three" {
		t.Errorf("read %v, the last one %q; want %v", got, last, want)
	}
}

func TestOldestRecordsAreFoldedAtTheBounds(t *testing.T) {
	for name, options := range map[string]Options{
		"of a group": {GroupBytes: 1000, TotalBytes: 1 << 20, SegmentBytes: 100},
		"in total":   {GroupBytes: 1 << 20, TotalBytes: 1000, SegmentBytes: 100},
	} {
		t.Run(name, func(t *testing.T) {
			s, large, _ := open(t, t.TempDir(), options)
			group := "uid"
			if options.TotalBytes == 1000 {
				group = "uid-2"
			}
			small, _, err := s.OpenLog(group, "clone", span)
			if err != nil {
				t.Fatal(err)
			}
			text := func(n int) string { return fmt.Sprintf("%03d", n) + strings.Repeat(".", 20) }
			appendText(t, small, "a", "b")
			for i := range 200 {
				appendText(t, large, text(i))
				if got := s.Used(); got > 1000 {
					t.Fatalf("%d bytes are used, at most 1000 are allowed", got)
				}
				if i == 3 { // these are in flight: they are read, not done with
					for range 2 {
						if _, _, err := large.Next(); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			if !large.Pressed() {
				t.Error("a full log is not pressed")
			}
			checkUsed(t, s)
			next, folds := 2, 0
			for _, record := range rest(t, large) {
				first, last := spanOf(record)
				if first != next {
					t.Errorf("after record %d comes %q", next-1, record)
				}
				if first != last {
					folds++
				}
				next = last + 1
			}
			if next != 200 || folds != 1 {
				t.Errorf("read up to record %d with %d folds, want 199 and 1", next-1, folds)
			}
			if got := rest(t, small); !slices.Equal(got, []string{"a", "b"}) {
				t.Errorf("the small log has %v: it was to be left alone", got)
			}
			if _, err := large.Append(make([]byte, 2000)); !errors.Is(err, ErrFull) {
				t.Errorf("a record that never fits: got %v, want %v", err, ErrFull)
			}
		})
	}
}

func TestGroupWithoutAnOpenLogCanBeRemoved(t *testing.T) {
	dir := t.TempDir()
	_, l, _ := open(t, dir, Options{})
	appendText(t, l, "left")
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := s.Logs("uid"); err != nil || !slices.Equal(names, []string{"agent"}) {
		t.Errorf("logs: %v, %v", names, err)
	}
	if size, err := s.Remove("uid"); err != nil || size != 12 || s.Used() != 0 {
		t.Errorf("removed %d bytes, %v; %d are left", size, err, s.Used())
	}
	for _, name := range []string{"..", "", "a/b"} {
		if _, _, err := s.OpenLog(name, "agent", span); err == nil {
			t.Errorf("a group may be called %q", name)
		}
	}
}

// Whatever is done in whatever order, records come once and in order.
func TestLogIsAQueueThatOutlivesItsProcess(t *testing.T) {
	base := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			t.Fatalf("%v", err)
		}
		options := Options{GroupBytes: 1 << 20, SegmentBytes: int64(rapid.IntRange(1, 100).Draw(t, "segment"))}
		s, l, _ := open(t, dir, options)
		var kept []string // what is not done with
		read := 0         // of kept
		n, trimmed := 0, uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				n++
				text := fmt.Sprint(n, strings.Repeat("x", rapid.IntRange(0, 60).Draw(t, "length")))
				appendText(t, l, text)
				kept = append(kept, text)
			},
			"read": func(t *rapid.T) {
				record, id, err := l.Next()
				if read == len(kept) {
					if !errors.Is(err, io.EOF) {
						t.Fatalf("read %q, %v at the end", record, err)
					}
					return
				}
				if err != nil || string(record) != kept[read] {
					t.Fatalf("read %q, %v; want %q", record, err, kept[read])
				}
				read++
				if want := trimmed + uint64(read); id != want { //nolint:gosec // a count
					t.Fatalf("record %q has the ID %d, want %d", record, id, want)
				}
			},
			"trim": func(t *rapid.T) {
				done := rapid.IntRange(0, read).Draw(t, "done")
				trimmed += uint64(done) //nolint:gosec // a count
				if err := l.Trim(trimmed); err != nil {
					t.Fatalf("trimming: %v", err)
				}
				kept, read = kept[done:], read-done
			},
			"restart": func(t *rapid.T) {
				// Trimming is by whole segments: some records that are done with are back.
				var again []string
				s, l, _ = open(t, dir, options)
				again = rest(t, l)
				if len(again) < len(kept) || !slices.Equal(again[len(again)-len(kept):], kept) {
					t.Fatalf("after a restart there are %v, want %v at the end", again, kept)
				}
				l.Close()
				s, l, _ = open(t, dir, options)
				kept, read, trimmed = again, 0, 0
			},
			"": func(t *rapid.T) { checkUsed(t, s) },
		})
	})
}

func FuzzAnyFileIsALog(f *testing.F) {
	f.Add([]byte{}, []byte("x"))
	f.Add(appendFrame(appendFrame(nil, []byte("one")), []byte("two")), []byte{1, 0, 0, 0})
	f.Add(appendFrame(nil, []byte("one"))[:9], appendFrame(nil, []byte("two")))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		dir := t.TempDir()
		folder := filepath.Join(dir, "uid", "agent")
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"000000000001": first, "000000000002": second, "000000000003.new": second} {
			if err := os.WriteFile(filepath.Join(folder, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, l, last := open(t, dir, Options{})
		checkUsed(t, s)
		found := rest(t, l)
		if len(found) > 0 && found[len(found)-1] != string(last) {
			t.Errorf("the last record is %q, read was %q", last, found)
		}
		appendText(t, l, "next")
		_, again, _ := open(t, dir, Options{})
		if got, want := rest(t, again), slices.Concat(found, []string{"next"}); !slices.Equal(got, want) {
			t.Errorf("read again %q, want %q", got, want)
		}
	})
}
