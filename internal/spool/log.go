package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// A Fold makes one record that stands for some consecutive ones. It may be called
// while any method of any log runs, and must call none.
type Fold func(records [][]byte) []byte

// A Log is one queue of records. One goroutine at a time appends, reads and trims.
type Log struct {
	store  *Store
	group  *group
	name   string
	dir    string
	fold   Fold
	unread atomic.Int64 // bytes of what Next has not returned

	mu       sync.Mutex // against folding for the sake of another log
	segments []*segment // from the oldest; the last one is appended to
	next     uint64     // ID of the next record to append
	number   uint64     // of the newest segment
	// at is the record that Next returns, which lies in the segment of that number
	// at that offset, unless that is the end of the segment.
	at struct {
		segment uint64
		offset  int64
		id      uint64
	}
}

// segment is one file.
type segment struct {
	number  uint64
	size    int64
	first   uint64 // ID of its first record
	records uint64
}

const frameHeader = 8

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// OpenLog opens a log with what an earlier process has left of it, and returns its last
// record, or nil. Next begins with its first one. When the bounds are reached, the
// oldest records that Next has not returned are replaced by what fold makes of them.
func (s *Store) OpenLog(groupName, name string, fold Fold) (*Log, []byte, error) {
	if !plain(groupName) || !plain(name) {
		return nil, nil, fmt.Errorf("opening %q/%q in the spool: no names", groupName, name)
	}
	s.mu.Lock()
	g := s.groups[groupName]
	if g == nil {
		g = &group{logs: map[string]*Log{}}
		s.groups[groupName] = g
	}
	if g.logs[name] != nil {
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("opening %s/%s in the spool: it is open", groupName, name)
	}
	l := &Log{store: s, group: g, name: name, dir: filepath.Join(s.dir, groupName, name), fold: fold, next: 1}
	l.mu.Lock()
	defer l.mu.Unlock()
	g.logs[name] = l
	s.mu.Unlock()
	last, err := l.recover()
	if err != nil {
		s.mu.Lock()
		delete(g.logs, name)
		s.mu.Unlock()
		return nil, nil, fmt.Errorf("opening %s/%s in the spool: %w", groupName, name, err)
	}
	return l, last, nil
}

func (l *Log) path(number uint64) string { return filepath.Join(l.dir, fmt.Sprintf("%012d", number)) }

// recover finds the records on disk. It cuts the log off before the first one that
// isn't whole.
func (l *Log) recover() (last []byte, err error) {
	entries, err := os.ReadDir(l.dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	torn := false
	for _, entry := range entries {
		path := filepath.Join(l.dir, entry.Name())
		info, err := entry.Info()
		if err != nil {
			return nil, err
		}
		number, err := strconv.ParseUint(entry.Name(), 10, 64)
		if err != nil || torn { // a fold that was not finished, or behind a record that was not
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			l.store.charge(l.group, -info.Size())
			continue
		}
		data, err := os.ReadFile(path) //nolint:gosec // within the spool
		if err != nil {
			return nil, err
		}
		s := &segment{number: number, first: l.next}
		for {
			record, ok := frame(data[s.size:])
			if !ok {
				break
			}
			last = record
			s.size += frameHeader + int64(len(record))
			s.records++
		}
		l.next += s.records
		torn = s.size < int64(len(data))
		if torn {
			if err := os.Truncate(path, s.size); err != nil {
				return nil, err
			}
			l.store.charge(l.group, s.size-int64(len(data)))
		}
		l.number = number
		if s.records == 0 {
			if err := os.Remove(path); err != nil {
				return nil, err
			}
			continue
		}
		l.segments = append(l.segments, s)
		l.unread.Add(s.size)
	}
	if len(l.segments) > 0 {
		l.at.segment, l.at.id = l.segments[0].number, 1
	}
	return slices.Clone(last), nil
}

// frame returns the record that data begins with, if it is whole.
func frame(data []byte) ([]byte, bool) {
	if len(data) < frameHeader {
		return nil, false
	}
	length := int64(binary.LittleEndian.Uint32(data))
	if length == 0 || length > int64(len(data)-frameHeader) {
		return nil, false
	}
	record := data[frameHeader : frameHeader+length]
	return record, crc32.Checksum(record, castagnoli) == binary.LittleEndian.Uint32(data[4:])
}

// appendFrame appends a record to data as it is on disk.
func appendFrame(data, record []byte) []byte {
	data = binary.LittleEndian.AppendUint32(data, uint32(len(record))) //nolint:gosec // far below 4 GiB
	data = binary.LittleEndian.AppendUint32(data, crc32.Checksum(record, castagnoli))
	return append(data, record...)
}

// Append appends a record, which must not be empty, and returns its ID: one more
// than that of the record before it. At the bounds it makes room by folding; if that
// isn't possible, the error is [ErrFull].
func (l *Log) Append(record []byte) (id uint64, err error) {
	size := frameHeader + int64(len(record))
	if err := l.store.makeRoom(l.group, size); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last()
	if last == nil || (last.size > 0 && last.size+size > l.store.options.SegmentBytes) {
		if last == nil {
			if err := os.MkdirAll(l.dir, 0o700); err != nil {
				return 0, fmt.Errorf("appending to the spool: %w", err)
			}
		}
		l.number++
		last = &segment{number: l.number, first: l.next}
		if len(l.segments) == 0 {
			l.at.segment, l.at.offset, l.at.id = last.number, 0, l.next
		}
		l.segments = append(l.segments, last)
	}
	err = l.store.write(l.path(last.number), appendFrame(make([]byte, 0, size), record), last.size)
	if err != nil {
		// What was written of it does not count, and the next record overwrites it. Its
		// room is given back at once all the same, for the disk may be full.
		_ = os.Truncate(l.path(last.number), last.size) // it would fail as the write did
		return 0, fmt.Errorf("appending to the spool: %w", err)
	}
	last.size += size
	last.records++
	l.next++
	l.unread.Add(size)
	l.store.charge(l.group, size)
	return l.next - 1, nil
}

func (l *Log) last() *segment {
	if len(l.segments) == 0 {
		return nil
	}
	return l.segments[len(l.segments)-1]
}

// Next returns the next record that it has not returned, and its ID. At the end the
// error is [io.EOF]. After [ErrCorrupt] the log can only be reset.
func (l *Log) Next() (record []byte, id uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.reading()
	if s == nil {
		return nil, 0, io.EOF
	}
	record, err = l.readFrame(s)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the spool: %w", err)
	}
	size := frameHeader + int64(len(record))
	id = l.at.id
	l.at.offset += size
	l.at.id++
	if s.first+s.records == l.at.id { // IDs jump over what was folded
		if after := l.after(s); after != nil {
			l.at.segment, l.at.offset, l.at.id = after.number, 0, after.first
		}
	}
	l.unread.Add(-size)
	return record, id, nil
}

// reading returns the segment of the next record, or nil if there is none.
func (l *Log) reading() *segment {
	for _, s := range l.segments {
		switch {
		case s.number == l.at.segment && l.at.offset < s.size:
			return s
		case s.number > l.at.segment && s.size > 0:
			l.at.segment, l.at.offset, l.at.id = s.number, 0, s.first
			return s
		}
	}
	return nil
}

func (l *Log) after(s *segment) *segment {
	if i := slices.Index(l.segments, s); i+1 < len(l.segments) {
		return l.segments[i+1]
	}
	return nil
}

func (l *Log) readFrame(s *segment) ([]byte, error) {
	file, err := os.Open(l.path(s.number))
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // nothing was written
	var header [frameHeader]byte
	if _, err := file.ReadAt(header[:], l.at.offset); err != nil {
		return nil, errors.Join(ErrCorrupt, err)
	}
	length := int64(binary.LittleEndian.Uint32(header[:]))
	if length == 0 || l.at.offset+frameHeader+length > s.size {
		return nil, ErrCorrupt
	}
	record := make([]byte, length)
	if _, err := file.ReadAt(record, l.at.offset+frameHeader); err != nil {
		return nil, errors.Join(ErrCorrupt, err)
	}
	if crc32.Checksum(record, castagnoli) != binary.LittleEndian.Uint32(header[4:]) {
		return nil, ErrCorrupt
	}
	return record, nil
}

// Trim says that the records up to an ID, which Next has returned, are done with.
func (l *Log) Trim(id uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.removeFirst(func(s *segment) bool { return s.records > 0 && s.first+s.records-1 <= id })
}

// Skip moves Next behind the records that were appended up to an ID, because their
// appender still has them.
func (l *Log) Skip(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last()
	if last != nil && last.first+last.records-1 == id {
		l.at.segment, l.at.offset, l.at.id = last.number, last.size, id+1
		l.unread.Store(0)
	}
}

// removeFirst removes segments from the oldest for as long as done is true.
func (l *Log) removeFirst(done func(*segment) bool) error {
	n := 0
	for ; n < len(l.segments) && done(l.segments[n]); n++ {
		s := l.segments[n]
		if err := os.Remove(l.path(s.number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.segments = slices.Delete(l.segments, 0, n)
			return fmt.Errorf("trimming the spool: %w", err)
		}
		l.store.charge(l.group, -s.size)
	}
	l.segments = slices.Delete(l.segments, 0, n)
	return nil
}

// Unread returns how many bytes Next has not returned.
func (l *Log) Unread() int64 { return l.unread.Load() }

// Pressed reports whether so little room is left for the log, or for all, that it
// should only grow if it has to: an eighth of the bound.
func (l *Log) Pressed() bool { return l.store.pressed(l.group) }

// Reset removes all records.
func (l *Log) Reset() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unread.Store(0)
	return l.removeFirst(func(*segment) bool { return true })
}

// Close forgets the log and leaves its records for whoever opens it next.
func (l *Log) Close() { l.leave() }

// Remove removes the log.
func (l *Log) Remove() error {
	err := l.Reset()
	l.leave()
	// The group's folder goes with its last log.
	for _, dir := range []string{l.dir, filepath.Dir(l.dir)} {
		if os.Remove(dir) != nil {
			break
		}
	}
	return err
}

func (l *Log) leave() {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	delete(l.group.logs, l.name)
	if len(l.group.logs) == 0 && l.group.used == 0 {
		delete(l.store.groups, filepath.Base(filepath.Dir(l.dir)))
	}
}

// foldOldest replaces the oldest segment that has not been begun to be read by one
// record, and reports whether there was one. The segment that is appended to stays.
func (l *Log) foldOldest() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := slices.IndexFunc(l.segments, func(s *segment) bool {
		return s.number > l.at.segment || (s.number == l.at.segment && l.at.offset == 0)
	})
	if first < 0 {
		return false
	}
	taken := l.segments[first:min(first+1, len(l.segments))]
	if l.segments[first].records == 1 && l.segments[first].size < l.store.options.SegmentBytes/4 {
		// Most likely it is what the last fold has made. Folded alone it would free nothing.
		taken = l.segments[first:min(first+2, len(l.segments))]
	}
	if first+len(taken) >= len(l.segments) {
		return false
	}
	var (
		records [][]byte
		freed   int64
	)
	for _, s := range taken {
		data, err := os.ReadFile(l.path(s.number))
		if err != nil {
			return false
		}
		for len(data) > 0 {
			record, ok := frame(data)
			if !ok {
				break // fold what can be read: the rest is lost anyway
			}
			records = append(records, record)
			data = data[frameHeader+len(record):]
		}
		freed += s.size
	}
	folded := appendFrame(nil, l.fold(records))
	if freed -= int64(len(folded)); freed <= 0 {
		return false
	}
	last := taken[len(taken)-1]
	kept := &segment{number: taken[0].number, size: int64(len(folded)), first: last.first + last.records - 1, records: 1}
	// A crash between the steps leaves records behind the one that stands for them.
	temporary := l.path(kept.number) + ".new"
	if err := l.store.write(temporary, folded, 0); err != nil || os.Rename(temporary, l.path(kept.number)) != nil {
		_ = os.Remove(temporary) // recover does it otherwise
		return false
	}
	for _, s := range taken[1:] {
		_ = os.Remove(l.path(s.number)) // if it fails, a restart sends its records
	}
	if l.at.segment == kept.number {
		l.at.id = kept.first
	}
	l.segments = slices.Replace(l.segments, first, first+len(taken), kept)
	l.unread.Add(-freed)
	l.store.charge(l.group, -freed)
	return true
}

// String names the log in messages.
func (l *Log) String() string {
	return strings.TrimPrefix(l.dir, l.store.dir+string(filepath.Separator))
}
