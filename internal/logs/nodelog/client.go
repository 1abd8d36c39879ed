// Package nodelog reads a container's log from the files in which its node keeps it,
// those included that the node has rotated away, which the pod log API does not show.
//
// A kubelet serves the node's /var/log at its own address. It asks the API server who
// calls and whether they may get nodes/log; nodes/proxy, which allows to run commands in
// every pod, is not needed. What is read is given in the form that the pod log API has,
// so that a line is the same line whichever way it came: the kubelet's own reader
// (ReadLogs in k8s.io/cri-client/pkg/logs) is the model.
package nodelog

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

var (
	// ErrRefused says that the kubelet does not let us read, or that we do not trust it.
	// It stays so until somebody changes that.
	ErrRefused = errors.New("the rotated logs of the node may not be read")
	// ErrNone says that the node has no file of the log.
	ErrNone = errors.New("the node has no file of this log")
	// errBusy says that the node is just about to change its files.
	errBusy = errors.New("the node is rotating the log")
)

const (
	// settleTime is how long a file that was rotated away must have been left alone to be
	// taken for whole. A runtime goes on writing to it until it has opened the next one,
	// and writes what it had in its buffer after that: some milliseconds. Both stamps are
	// cut to the second, so it is more than one second; more would let a log that is
	// rotated every three seconds never rest.
	settleTime = 2 * time.Second
	// mostTries is how often files are looked for while they change.
	mostTries = 12
	// mostFiles bounds how many rotated files are opened; the newest ones count.
	mostFiles = 64
)

// settling paces the tries.
var settling = backoff.Policy{Initial: 200 * time.Millisecond, Max: time.Second}

// A Client reads files of nodes.
type Client struct {
	// HTTP says who we are, and checks who the kubelet is.
	HTTP *http.Client
	// Port is the kubelets' own.
	Port int
}

// A Log is that of one container instance.
type Log struct {
	// Host is the address of the node.
	Host string
	// Namespace, Pod, UID and Container name the container, and RestartCount its run.
	Namespace, Pod, UID, Container string
	RestartCount                   int32
	// Ended says that nothing will be written any more.
	Ended bool
	// Since is the time of the oldest line that is wanted; there may be older ones.
	Since time.Time
}

// current is the name of the file that is written to.
func (l Log) current() string { return strconv.Itoa(int(l.RestartCount)) + ".log" }

func (c *Client) url(log Log, name string) string {
	folder := log.Namespace + "_" + log.Pod + "_" + log.UID
	u := url.URL{
		Scheme: "https", Host: net.JoinHostPort(log.Host, strconv.Itoa(c.Port)),
		Path: "/logs/pods/" + folder + "/" + log.Container + "/" + name,
	}
	return u.String()
}

// Rotated lists the rotated files that the node has of a log, by names that they keep when
// they are compressed. Whoever has opened the current file before, and is told of none, has
// all that was ever printed.
func (c *Client) Rotated(ctx context.Context, log Log) ([]string, error) {
	files, err := c.list(ctx, log)
	if err == nil && len(files.rotated) == 0 && !files.current {
		err = ErrNone
	}
	return files.rotated, err
}

// Open opens all files that the node has of a log, from the one with the oldest line that
// is wanted to the current one. What is open stays readable when the node removes it. No
// file between two of them is missing. The answer is valid until ctx ends, and must be
// closed.
func (c *Client) Open(ctx context.Context, log Log) (*Reader, error) {
	var last error
	for attempt := range settling.Attempts(ctx) {
		var r *Reader
		if r, last = c.try(ctx, log); !errors.Is(last, errBusy) {
			return r, last
		}
		if attempt.Number == mostTries {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("reading the log files of the node: %w", last)
}

// try opens the files if they stay as they are meanwhile.
func (c *Client) try(ctx context.Context, log Log) (*Reader, error) {
	before, err := c.list(ctx, log)
	switch {
	case err != nil:
		return nil, err
	case !before.current && !log.Ended:
		return nil, errBusy // a node that could not open the next file does so at its next look
	case !before.current && len(before.rotated) == 0:
		return nil, ErrNone
	}
	r := &Reader{ended: log.Ended, whole: len(before.rotated) == 0, newLine: true}
	if err := c.openAll(ctx, r, log, before); err != nil {
		r.Close() //nolint:errcheck // what it has does not help
		return nil, err
	}
	// Had there been a rotation before the current file was opened, the list would show it.
	after, err := c.list(ctx, log)
	if err == nil && !after.sameFiles(before) {
		err = errBusy
	}
	if err != nil {
		r.Close() //nolint:errcheck // as above
		return nil, err
	}
	r.begin(log.Since)
	return r, nil
}

// openAll opens the files of a listing.
func (c *Client) openAll(ctx context.Context, r *Reader, log Log, all folder) error {
	rotated := all.rotated[max(0, len(all.rotated)-mostFiles):]
	for i, name := range rotated {
		f, err := c.openFile(ctx, log, name, all.packed[name])
		if errors.Is(err, ErrNone) && !all.packed[name] {
			f, err = c.openFile(ctx, log, name, true) // compressed meanwhile
		}
		if errors.Is(err, ErrNone) {
			return errBusy // removed meanwhile
		}
		if err != nil {
			return err
		}
		r.files = append(r.files, f)
		if i == len(rotated)-1 && f.age < settleTime {
			return errBusy
		}
	}
	// Their names have the node's local time, which may step back.
	slices.SortStableFunc(r.files, func(a, b *file) int { return a.first.Compare(b.first) })
	if !all.current {
		return nil
	}
	f, err := c.openFile(ctx, log, log.current(), false)
	if errors.Is(err, ErrNone) {
		return errBusy // rotated just now
	}
	if err != nil {
		return err
	}
	r.files = append(r.files, f)
	return nil
}

// answered translates an answer that is no file.
func answered(code int, said string) error {
	switch code {
	case http.StatusNotFound:
		return ErrNone
	case http.StatusForbidden:
		return fmt.Errorf("%w: the service account may not get nodes/log: %s", ErrRefused, said)
	case http.StatusMethodNotAllowed:
		return fmt.Errorf("%w: the kubelet does not serve them (enableSystemLogHandler is off): %s", ErrRefused, said)
	default:
		// Unauthorized as well: a kubelet says so when it cannot ask the API server.
		return fmt.Errorf("the kubelet answers %d %s: %s", code, http.StatusText(code), said)
	}
}

// refusal translates a call that got no answer.
func refusal(err error) error {
	var certificate *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	if errors.As(err, &certificate) || errors.As(err, &authority) || errors.As(err, &name) {
		return fmt.Errorf("%w: its kubelet's certificate is not trusted: %w", ErrRefused, err)
	}
	return err
}
