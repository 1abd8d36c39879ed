// Package spool keeps records on disk until somebody is done with them: one queue
// of records for each log, bounded for a group of logs and in total.
//
// # Files
//
// A log is a folder, <group>/<name>, of segments that are only appended to. A
// record is its length and its CRC-32C, four bytes each, and then its bytes.
// A segment is removed when all of its records are done with. No file is open
// except while it is read or written, so thousands of logs take no descriptors.
//
// # What a crash loses
//
// A process that is killed loses nothing that Append has returned for: the kernel
// has it. Nothing is synced to the disk by itself, because the folder is an emptyDir,
// which no other node will ever see: what a node loses when it dies, it loses with the
// folder. A record that was torn in two is found by its checksum when the log is
// opened, and cut off, with everything behind it.
package spool

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

var (
	// ErrFull says that a record doesn't fit, and that nothing may be folded for it.
	ErrFull = errors.New("the spool is full")
	// ErrCorrupt says that a record isn't what was appended.
	ErrCorrupt = errors.New("the spool is corrupt")
)

// Options are the bounds of a [Store], in bytes. Zero values mean the defaults.
type Options struct {
	// GroupBytes bounds the logs of one group. Default 64 MiB.
	GroupBytes int64
	// TotalBytes bounds all logs together. Default 1 GiB.
	TotalBytes int64
	// SegmentBytes is how large a segment grows, unless one record is larger.
	// Default 4 MiB, or a sixteenth of GroupBytes if that is less.
	SegmentBytes int64
}

// A Store is a folder of logs. Its methods may be called concurrently.
type Store struct {
	dir     string
	options Options
	// write writes to a file at an offset; tests make it fail.
	write func(path string, data []byte, offset int64) error

	mu     sync.Mutex
	used   int64
	groups map[string]*group
}

// group is the logs that share a bound. It is guarded by the store's mu.
type group struct {
	used int64
	logs map[string]*Log
}

// Open opens a folder, which is made if need be. What an earlier process left in it
// counts at once, and is there for OpenLog.
func Open(dir string, options Options) (*Store, error) {
	if options.GroupBytes == 0 {
		options.GroupBytes = 64 << 20
	}
	if options.TotalBytes == 0 {
		options.TotalBytes = 1 << 30
	}
	if options.SegmentBytes == 0 {
		options.SegmentBytes = min(4<<20, options.GroupBytes/16)
	}
	s := &Store{dir: dir, options: options, write: writeAt, groups: map[string]*group{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the spool: %w", err)
	}
	names, err := s.Groups()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		size, err := sizeOf(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("measuring the spool: %w", err)
		}
		s.groups[name] = &group{used: size, logs: map[string]*Log{}}
		s.used += size
	}
	return s, nil
}

func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// Groups lists the groups that have files.
func (s *Store) Groups() ([]string, error) { return folders(s.dir) }

// Logs lists the logs of a group that have files.
func (s *Store) Logs(group string) ([]string, error) {
	if !plain(group) {
		return nil, fmt.Errorf("listing the spool: %q is no name", group)
	}
	names, err := folders(filepath.Join(s.dir, group))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return names, err
}

func folders(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing the spool: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && plain(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// plain reports whether a name is one folder's, and no way out of ours.
func plain(name string) bool {
	return name != "" && name != "." && name != ".." && name != "lost+found" && !strings.ContainsAny(name, `/\`)
}

// Used returns how many bytes all logs take on disk.
func (s *Store) Used() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// Remove removes a group that no log is open of, with everything in it, and
// returns how large it was.
func (s *Store) Remove(name string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[name]
	if !plain(name) || g == nil || len(g.logs) > 0 {
		return 0, nil
	}
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		return 0, fmt.Errorf("removing from the spool: %w", err)
	}
	s.used -= g.used
	delete(s.groups, name)
	return g.used, nil
}

// Pressed reports whether so little room is left in a group, or in all, that its
// logs should only grow if they have to: an eighth.
func (s *Store) pressed(g *group) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return g.used >= s.options.GroupBytes/8*7 || s.used >= s.options.TotalBytes/8*7
}

// charge counts bytes that a log has come to take, or, if negative, takes no more.
func (s *Store) charge(g *group, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.used += bytes
	s.used += bytes
}

// makeRoom folds records until so many more bytes fit, first those of the group's
// largest log, then, for the sake of the total, those of the largest log of all.
func (s *Store) makeRoom(g *group, bytes int64) error {
	for {
		s.mu.Lock()
		var candidates []*Log
		switch {
		case g.used+bytes > s.options.GroupBytes:
			candidates = logsOf(g)
		case s.used+bytes > s.options.TotalBytes:
			for _, other := range s.groups {
				candidates = append(candidates, logsOf(other)...)
			}
		default:
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if !foldLargest(candidates) {
			return ErrFull
		}
	}
}

func logsOf(g *group) []*Log {
	var all []*Log
	for _, l := range g.logs {
		all = append(all, l)
	}
	return all
}

// foldLargest makes the log smaller that has the most to read, and reports whether
// one could be.
func foldLargest(candidates []*Log) bool {
	for len(candidates) > 0 {
		largest := 0
		for i, l := range candidates {
			if l.unread.Load() > candidates[largest].unread.Load() {
				largest = i
			}
		}
		if candidates[largest].foldOldest() {
			return true
		}
		candidates[largest] = candidates[len(candidates)-1]
		candidates = candidates[:len(candidates)-1]
	}
	return false
}

// writeAt writes to a file, which it makes if need be. The file is not kept open.
func writeAt(path string, data []byte, offset int64) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600) //nolint:gosec // within the spool
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, offset)
	return errors.Join(err, file.Close())
}
