// Package nestjs runs the log server of examples/nestjs-log-server as a program of
// its own, so that tests can kill it and start it again, and asks it for what it has
// stored.
package nestjs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// patience bounds the wait for a start: a busy machine takes seconds to load Node.
const patience = time.Minute

// A Server is one log server with a folder of its own.
type Server struct {
	// Addr is where it takes logs, host:port.
	Addr string
	// Page is where it shows them, host:port.
	Page string
	// Output is the file of what it prints.
	Output string

	folder, data string
	running      *exec.Cmd
}

// Folder returns where the program is in a source tree.
func Folder(root string) string { return filepath.Join(root, "examples", "nestjs-log-server") }

// Build makes the program, with its packages.
func Build(ctx context.Context, root string, out io.Writer) error {
	build := exec.CommandContext(ctx, filepath.Join(root, "scripts", "nestjs"))
	build.Stdout, build.Stderr = out, out
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the NestJS log server: %w", err)
	}
	return nil
}

// New prepares a server of a source tree whose logs are in dir, and starts nothing.
func New(ctx context.Context, root, dir string) (*Server, error) {
	s := &Server{folder: Folder(root), data: dir, Output: filepath.Join(dir, "server.log")}
	for _, addr := range []*string{&s.Addr, &s.Page} {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
		*addr = l.Addr().String()
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("finding a free port: %w", err)
		}
	}
	return s, nil
}

// Start starts the program and waits until it says that it serves.
func (s *Server) Start(ctx context.Context) error {
	output, err := os.OpenFile(s.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("starting the NestJS log server: %w", err)
	}
	defer output.Close()                            //nolint:errcheck // the program has its own handle
	cmd := exec.Command("node", "dist/src/main.js") //nolint:noctx // it is ended by its signals
	cmd.Dir = s.folder
	cmd.Env = append(os.Environ(), "LISTEN="+s.Addr, "HTTP_LISTEN="+s.Page, "DATA_DIR="+s.data)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the NestJS log server: %w", err)
	}
	s.running = cmd
	if err := s.awaitHealth(ctx); err != nil {
		return errors.Join(fmt.Errorf("the NestJS log server does not serve, see %s: %w", s.Output, err), s.Kill())
	}
	return nil
}

func (s *Server) awaitHealth(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := grpc.NewClient(s.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing hangs on it
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx,
		&grpc_health_v1.HealthCheckRequest{Service: "ottoscaler.logs.v1.LogService"}, grpc.WaitForReady(true))
	if err == nil && answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		err = fmt.Errorf("its health is %v", answer.GetStatus())
	}
	return err
}

// Kill ends the program with SIGKILL, if it runs.
func (s *Server) Kill() error {
	var exit *exec.ExitError // its status is the signal
	if err := s.end(syscall.SIGKILL); err != nil && !errors.As(err, &exit) {
		return err
	}
	return nil
}

// Stop ends the program with SIGTERM. One that does not exit with 0 is an error.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

func (s *Server) end(signal os.Signal) error {
	cmd := s.running
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("ending the NestJS log server: %w", err)
	}
	s.running = nil
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("ending the NestJS log server, see %s: %w", s.Output, err)
	}
	return nil
}

// A Worker is one that the server knows.
type Worker struct {
	// UID, Name and TaskID identify it.
	UID    string `json:"uid"`
	Name   string `json:"name"`
	TaskID string `json:"taskId"`
	// FinishedMS is when its end was told, in milliseconds since 1970, or nil.
	FinishedMS *int64 `json:"finishedMs"`
	// Logs has one log for each container instance.
	Logs []Log `json:"logs"`
	// Ends tells how each container ended.
	Ends []End `json:"ends"`
	// Reason and Message are the pod's own, or empty.
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// An End is how a container ended.
type End struct {
	Container string `json:"container"`
	// ExitCode is nil where the container never ran, or its end was not seen.
	ExitCode *int   `json:"exitCode"`
	Reason   string `json:"reason"`
	Message  string `json:"message"`
}

// A Log is one that the server has stored.
type Log struct {
	ID        int64  `json:"id"`
	Container string `json:"container"`
	// Lines and Gaps count what is stored; a gap is a line, too.
	Lines int `json:"lines"`
	Gaps  int `json:"gaps"`
	// Complete says that the relay has sent all, and Matches that what is stored is what it sent.
	Complete bool   `json:"complete"`
	Matches  bool   `json:"matches"`
	Mismatch string `json:"mismatch"`
}

// Workers returns the newest workers, at most as many as one page has.
func (s *Server) Workers(ctx context.Context) ([]Worker, error) {
	var answer struct {
		Workers []Worker `json:"workers"`
	}
	body, err := s.get(ctx, "/api/workers")
	if err != nil {
		return nil, err
	}
	err = json.NewDecoder(body).Decode(&answer)
	return answer.Workers, errors.Join(err, body.Close())
}

// Download returns a log's lines, each ended by a line feed. A gap is an empty line.
func (s *Server) Download(ctx context.Context, log int64) (io.ReadCloser, error) {
	return s.get(ctx, "/api/logs/"+strconv.FormatInt(log, 10)+"/download")
}

func (s *Server) get(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Page+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking the NestJS log server: %w", err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking the NestJS log server: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, errors.Join(fmt.Errorf("asking the NestJS log server for %s: %s", path, answer.Status), answer.Body.Close())
	}
	return answer.Body, nil
}
