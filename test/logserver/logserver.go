// Package logserver is the reference log server: the log protocol in Go, with
// everything in files.
//
// It keeps a folder for each worker. The log of a container instance is
// <container>-<restart count>.log, the lines as they were printed; beside it,
// the .json file of the same name says how far it goes and whether it is
// complete. worker.json and end.json are what the relay said about the worker.
// A server that starts with a folder goes on where the one before it stopped.
package logserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ottoscaler/ottoscaler/internal/logs/logstest"
	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// These are what a server is asked about and told to do wrong.
type (
	// Server is the log server.
	Server = logstest.Server
	// Worker is what it knows of a worker.
	Worker = logstest.Worker
	// Log is what it holds of a container instance.
	Log = logstest.Log
	// Key names a log.
	Key = logstest.Key
	// Faults make it misbehave.
	Faults = logstest.Faults
	// Action is what it does with a batch.
	Action = logstest.Action
)

// Options say what a server does with what it receives.
type Options struct {
	// Dir is the folder for the files; empty keeps everything in memory, and
	// nothing else.
	Dir string
	// Print receives each line, prefixed by worker and container, unless it is nil.
	Print io.Writer
}

// New makes a server. With a folder, its lines are there and not in memory.
func New(options Options) (*Server, error) {
	server := &Server{Discard: options.Dir != ""}
	keeper := &files{dir: options.Dir, print: options.Print, folders: map[string]string{}, sizes: map[Key]int64{}}
	if options.Dir == "" && options.Print == nil {
		return server, nil
	}
	server.Sink = keeper
	if options.Dir != "" {
		if err := keeper.restore(server); err != nil {
			return nil, fmt.Errorf("going on with %s: %w", options.Dir, err)
		}
	}
	return server, nil
}

// files is the sink that writes files and prints.
type files struct {
	dir   string
	print io.Writer

	mu      sync.Mutex
	folders map[string]string // of workers, by UID
	sizes   map[Key]int64     // of log files
}

// record is the file beside a log.
type record struct {
	Container    string          `json:"container"`
	RestartCount uint32          `json:"restart_count"`
	Init         bool            `json:"init,omitempty"`
	Lines        uint64          `json:"lines"`
	Bytes        uint64          `json:"bytes"`
	Checksum     string          `json:"checksum"` // as a hexadecimal number, which no reader rounds
	Gaps         uint64          `json:"gaps,omitempty"`
	Dropped      int             `json:"dropped,omitempty"`
	Size         int64           `json:"size"`
	Complete     bool            `json:"complete"`
	Matches      bool            `json:"matches"`
	Position     json.RawMessage `json:"position"`
}

// Register implements the sink.
func (f *files) Register(w *logsv1.Worker) error {
	if f.dir == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, err := f.newFolder(w)
	if err != nil {
		return err
	}
	f.folders[w.GetUid()] = folder
	return writeMessage(filepath.Join(folder, "worker.json"), w)
}

// newFolder makes a worker's folder, which has its name unless another worker's has it.
func (f *files) newFolder(w *logsv1.Worker) (string, error) {
	if name := w.GetName(); name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return "", fmt.Errorf("a worker is called %q", name)
	}
	folder := filepath.Join(f.dir, w.GetName())
	err := os.Mkdir(folder, 0o755) //nolint:gosec // for humans to read
	if errors.Is(err, fs.ErrExist) {
		folder += "." + filepath.Base(w.GetUid())
		err = os.MkdirAll(folder, 0o755) //nolint:gosec // for humans to read
	}
	return folder, err
}

// Append implements the sink. The lines are written before the record that
// counts them: what a crash leaves behind the record is cut off at the start.
func (f *files) Append(w *logsv1.Worker, lines []byte, now Log) error {
	if f.print != nil {
		f.printLines(w, lines, now)
	}
	if f.dir == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	path := f.path(now.Key) + ".log"
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // for humans to read
	if err != nil {
		return err
	}
	_, err = file.WriteAt(lines, f.sizes[now.Key])
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	size := f.sizes[now.Key] + int64(len(lines))
	if err := f.writeRecord(now, size); err != nil {
		return err
	}
	f.sizes[now.Key] = size
	return nil
}

func (f *files) printLines(w *logsv1.Worker, lines []byte, now Log) {
	prefix := w.GetName() + " " + now.Container + " | "
	var out strings.Builder
	for line := range strings.Lines(string(lines)) {
		out.WriteString(prefix)
		out.WriteString(line)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	io.WriteString(f.print, out.String()) //nolint:errcheck // a closed terminal must not stop the logs
}

// Complete implements the sink.
func (f *files) Complete(_ *logsv1.Worker, now Log) error {
	if f.dir == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.LineCount == 0 { // a log without lines is a file, too
		if err := os.WriteFile(f.path(now.Key)+".log", nil, 0o644); err != nil { //nolint:gosec // for humans to read
			return err
		}
	}
	return f.writeRecord(now, f.sizes[now.Key])
}

// Finish implements the sink.
func (f *files) Finish(w *logsv1.Worker, end *logsv1.FinishWorkerRequest) error {
	if f.dir == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return writeMessage(filepath.Join(f.folders[w.GetUid()], "end.json"), end)
}

func (f *files) path(key Key) string {
	return filepath.Join(f.folders[key.WorkerUID], fmt.Sprintf("%s-%d", filepath.Base(key.Container), key.RestartCount))
}

func (f *files) writeRecord(now Log, size int64) error {
	position, err := protojson.Marshal(now.Position)
	if err != nil {
		return fmt.Errorf("encoding a position: %w", err)
	}
	text, err := json.MarshalIndent(record{
		Container: now.Container, RestartCount: now.RestartCount, Init: now.Init,
		Lines: now.LineCount, Bytes: now.ByteCount, Checksum: fmt.Sprintf("%016x", now.Checksum), Gaps: now.GapCount, Dropped: now.Dropped,
		Size: size, Complete: now.Complete, Matches: now.Matches, Position: position,
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding a record: %w", err)
	}
	return overwrite(f.path(now.Key)+".json", text)
}

// recordSize is what a record is padded to, so that a new one covers the old one.
const recordSize = 1024

// overwrite writes a record in place. It is one small write, of which a process that
// is killed leaves all or nothing, and far cheaper than a new file for each batch.
func overwrite(path string, text []byte) error {
	if len(text) >= recordSize {
		return fmt.Errorf("writing %s: the record has %d bytes", path, len(text))
	}
	padded := append(bytes.Repeat([]byte{' '}, recordSize-1), '\n')
	copy(padded, text)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // for humans to read
	if err != nil {
		return err
	}
	_, err = file.WriteAt(padded, 0)
	return errors.Join(err, file.Close())
}

func writeMessage(path string, message proto.Message) error {
	text, err := protojson.MarshalOptions{Multiline: true}.Marshal(message)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", filepath.Base(path), err)
	}
	return replace(path, text)
}

// replace writes a file so that a crash leaves the old one or the new one.
func replace(path string, text []byte) error {
	if err := os.WriteFile(path+".tmp", append(text, '\n'), 0o644); err != nil { //nolint:gosec // for humans to read
		return err
	}
	return os.Rename(path+".tmp", path)
}

// restore gives the server what the folder holds.
func (f *files) restore(server *Server) error {
	if err := os.MkdirAll(f.dir, 0o755); err != nil { //nolint:gosec // for humans to read
		return err
	}
	registrations, err := filepath.Glob(filepath.Join(f.dir, "*", "worker.json"))
	if err != nil {
		return err
	}
	for _, path := range registrations {
		worker, err := f.restoreWorker(path)
		if err != nil {
			return err
		}
		server.Restore(worker)
	}
	return nil
}

func (f *files) restoreWorker(path string) (Worker, error) {
	folder := filepath.Dir(path)
	worker := Worker{Registration: &logsv1.Worker{}}
	if err := readMessage(path, worker.Registration); err != nil {
		return worker, err
	}
	f.folders[worker.Registration.GetUid()] = folder
	end := &logsv1.FinishWorkerRequest{}
	switch err := readMessage(filepath.Join(folder, "end.json"), end); {
	case err == nil:
		worker.End = end
	case !errors.Is(err, fs.ErrNotExist):
		return worker, err
	}
	logs, err := filepath.Glob(filepath.Join(folder, "*.log"))
	if err != nil {
		return worker, err
	}
	for _, log := range logs {
		restored, err := f.restoreLog(worker.Registration.GetUid(), log)
		if err != nil {
			return worker, err
		}
		if restored != nil {
			worker.Logs = append(worker.Logs, *restored)
		}
	}
	return worker, nil
}

// restoreLog reads a log's record and cuts off what the record does not count.
func (f *files) restoreLog(uid, path string) (*Log, error) {
	text, err := os.ReadFile(strings.TrimSuffix(path, ".log") + ".json") //nolint:gosec // in the folder we were given
	if errors.Is(err, fs.ErrNotExist) {
		return nil, os.Truncate(path, 0)
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", path, err)
	}
	checksum, err := strconv.ParseUint(r.Checksum, 16, 64)
	if err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", path, err)
	}
	position := &logsv1.Position{}
	if err := protojson.Unmarshal(r.Position, position); err != nil {
		return nil, fmt.Errorf("reading the record of %s: %w", path, err)
	}
	if position.GetSequence() == 0 {
		position = nil
	}
	key := Key{WorkerUID: uid, Container: r.Container, RestartCount: r.RestartCount}
	f.sizes[key] = r.Size
	return &Log{
		Key: key, Init: r.Init, LineCount: r.Lines, ByteCount: r.Bytes, Checksum: checksum, GapCount: r.Gaps, Dropped: r.Dropped,
		Complete: r.Complete, Matches: r.Matches, Position: position,
	}, os.Truncate(path, r.Size)
}

func readMessage(path string, message proto.Message) error {
	text, err := os.ReadFile(path) //nolint:gosec // in the folder we were given
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(text, message); err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}
