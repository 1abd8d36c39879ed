package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
	"github.com/ottoscaler/ottoscaler/internal/logs"
	"github.com/ottoscaler/ottoscaler/internal/logs/link"
	"github.com/ottoscaler/ottoscaler/internal/mask"
)

// Config is what the environment says.
type Config struct {
	daemon.Settings

	// Namespace is where the workers live.
	Namespace string `required:"true" desc:"namespace of the workers"`
	// InstanceID tells the workers of this installation from others in the namespace.
	InstanceID string `split_words:"true" default:"ottoscaler" desc:"installation that owns the workers"`
	// QueueAddr is where the consumer serves the queue.
	QueueAddr string `split_words:"true" default:"127.0.0.1:7070" desc:"address of the queue"`
	// LogServerAddr is the log server, in any form that gRPC dials.
	LogServerAddr string `split_words:"true" required:"true" desc:"address of the log server, such as logs.example:50051"`
	// LogServerTLS is on, off or auto, which is on if there is any sign of it: a
	// file of certificates, a server name, a token that may not go in plaintext,
	// or port 443.
	LogServerTLS string `split_words:"true" default:"auto" desc:"TLS to the log server: on, off, or auto (on with a CA, certificate, server name or token, or port 443)"`
	// LogServerCAFile, LogServerCertFile and LogServerKeyFile are read at each
	// handshake, LogServerTokenFile for each call: they may be replaced at any time.
	LogServerCAFile    string `split_words:"true" desc:"PEM file of who may sign the log server's certificate; without it, the public authorities"`
	LogServerCertFile  string `split_words:"true" desc:"PEM file of the client certificate that the log server wants"`
	LogServerKeyFile   string `split_words:"true" desc:"PEM file of the client certificate's key"`
	LogServerName      string `split_words:"true" desc:"name in the log server's certificate, if it is not the one in the address"`
	LogServerTokenFile string `split_words:"true" desc:"file with a bearer token for the log server"`
	// LogServerTokenPlaintext is for a network that somebody else encrypts, such as a mesh.
	LogServerTokenPlaintext bool `split_words:"true" desc:"send the token also without TLS to another machine"`
	// LogServerCompression is gzip, none or auto, which is gzip unless the address
	// is surely near: see [link.Near].
	LogServerCompression string `split_words:"true" default:"auto" desc:"gzip, none, or auto (gzip unless the address is of this machine, the cluster or a private network)"`
	// LogServerConnections share the streams. One is enough, unless the server's
	// receive window or a limit of streams per connection gets in the way; the
	// relay warns of both.
	LogServerConnections int `split_words:"true" default:"1" desc:"connections to the log server, 1 to 64"`
	// LogStreams is auto or off. Telling stdout from stderr takes two more connections
	// for each log.
	LogStreams string `split_words:"true" default:"auto" desc:"tell stdout from stderr: off, or auto (where the cluster allows it)"`
	// RotatedLogsAccount is a service account beside our own, with no right but to get
	// nodes/log: its token goes to every node that has workers.
	RotatedLogsAccount string `split_words:"true" desc:"service account whose token lets nodes show what they have rotated away; empty: that becomes a gap"`
	// KubeletPort, KubeletCAFile and KubeletInsecure say how the nodes are reached for
	// that, and known.
	KubeletPort     int    `split_words:"true" default:"10250" desc:"port of the kubelets"`
	KubeletCAFile   string `split_words:"true" desc:"PEM file of who signs the kubelets' certificates; empty: the cluster's own authority"`
	KubeletInsecure bool   `split_words:"true" desc:"take any certificate of a kubelet: who is on the way can read the account's token and change lines"`
	// MaskPatterns hide what they match in all logs. What a pool's Secrets hold is
	// hidden where the pool says so.
	MaskPatterns string `split_words:"true" desc:"regular expressions, one a line, of what to hide in lines (only their groups, if they have some)"`
	// MaxWorkers is how many workers are followed at once. Each takes some 75 KiB,
	// lines aside. The lines that wait for the log server take up to 64 MiB of memory for
	// all workers together, and past that two batches of 4 KiB, or longer lines, for each.
	MaxWorkers int `split_words:"true" default:"5000" desc:"workers that are followed at once, some 75 KiB of memory each"`
	// BatchLines, BatchBytes and BatchLinger bound a batch: it is sent when it
	// has so many lines or bytes, or is so old.
	BatchLines  int           `split_words:"true" default:"500" desc:"most lines of a batch"`
	BatchBytes  int           `split_words:"true" default:"262144" desc:"most bytes of a batch, at most 262144"`
	BatchLinger time.Duration `split_words:"true" default:"20ms" desc:"how long a batch waits for more lines"`
	// SpoolDir is where lines are kept that the log server does not take at once: a
	// folder that nobody else uses, and that outlives the process. Without one, they stay
	// at the nodes, which remove them when they rotate a log.
	SpoolDir string `split_words:"true" desc:"folder for lines that wait for the log server; empty: they wait at the nodes, until these rotate the logs"`
	// SpoolWorkerBytes and SpoolBytes bound what waits there of one worker and of
	// all. At seven eighths the reading pauses; at the bound the oldest lines go.
	SpoolWorkerBytes int64 `split_words:"true" default:"67108864" desc:"most bytes of one worker in the spool; past it, the oldest lines are dropped and counted"`
	SpoolBytes       int64 `split_words:"true" default:"1073741824" desc:"most bytes in the spool"`
	// LogDrainTimeout is how long a worker that has ended waits for its last
	// acknowledgement. It must be shorter than that of the scaler, which then lets go of
	// the worker whether we are done or not, and does not know what was lost.
	LogDrainTimeout time.Duration `split_words:"true" default:"9m30s" desc:"how long lines of a worker that has ended wait for the log server; a little shorter than the scaler's"`
	// StreamAge is about how old a stream becomes. Load balancers and proxies drop old
	// ones anyway, and not always with a word.
	StreamAge time.Duration `split_words:"true" default:"30m" desc:"how old a stream to the log server becomes before another one takes its place"`
	// Kubeconfig is for a relay outside of the cluster.
	Kubeconfig string `desc:"kubeconfig file; empty inside of a cluster"`
	// HealthAddr serves /healthz, /readyz, /metrics and grpc.health.v1.
	HealthAddr string `split_words:"true" default:":8083" desc:"address for health and metrics"`
	// DrainTimeout is how long a relay that is told to stop waits for
	// acknowledgements. It must be shorter than the pod's grace period.
	DrainTimeout time.Duration `split_words:"true" default:"20s" desc:"how long to wait for acknowledgements when stopping"`
}

// Validate returns every problem.
func (c Config) Validate() error {
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if c.Namespace == "" {
		problem("NAMESPACE is empty: it names the namespace of the workers")
	}
	if c.InstanceID == "" {
		problem("INSTANCE_ID is empty")
	}
	if c.LogServerAddr == "" {
		problem("LOG_SERVER_ADDR is empty: it is the address of the log server, such as logs.example:50051")
	}
	problems = append(problems, c.linkProblems()...)
	if c.LogStreams != auto && c.LogStreams != off {
		problem("LOG_STREAMS is %q: want auto or off", c.LogStreams)
	}
	if c.KubeletPort < 1 || c.KubeletPort > 65535 {
		problem("KUBELET_PORT is %d: want 1 to 65535", c.KubeletPort)
	}
	if c.KubeletCAFile != "" && c.KubeletInsecure {
		problem("KUBELET_CA_FILE is set, but KUBELET_INSECURE takes any certificate")
	}
	if _, err := mask.ParsePatterns(c.MaskPatterns); err != nil {
		problem("MASK_PATTERNS: %w", err)
	}
	if _, _, err := net.SplitHostPort(c.QueueAddr); err != nil {
		problem("QUEUE_ADDR is %q: want host:port", c.QueueAddr)
	}
	if _, _, err := net.SplitHostPort(c.HealthAddr); err != nil {
		problem("HEALTH_ADDR is %q: want host:port", c.HealthAddr)
	}
	if c.MaxWorkers < 1 {
		problem("MAX_WORKERS is %d: want 1 or more", c.MaxWorkers)
	}
	if c.BatchLines < 1 {
		problem("BATCH_LINES is %d: want 1 or more", c.BatchLines)
	}
	if c.BatchBytes < 1024 || c.BatchBytes > logs.MaxBatchBytes {
		problem("BATCH_BYTES is %d: want 1024 to %d", c.BatchBytes, logs.MaxBatchBytes)
	}
	if c.BatchLinger <= 0 {
		problem("BATCH_LINGER is %v: want more than 0", c.BatchLinger)
	}
	if c.SpoolWorkerBytes < 1<<20 {
		problem("SPOOL_WORKER_BYTES is %d: want 1048576 (1 MiB) or more", c.SpoolWorkerBytes)
	}
	if c.SpoolBytes < c.SpoolWorkerBytes {
		problem("SPOOL_BYTES is %d: want SPOOL_WORKER_BYTES (%d) or more", c.SpoolBytes, c.SpoolWorkerBytes)
	}
	if c.LogDrainTimeout <= 0 {
		problem("LOG_DRAIN_TIMEOUT is %v: want more than 0", c.LogDrainTimeout)
	}
	if c.StreamAge < time.Second {
		problem("STREAM_AGE is %v: want 1s or more", c.StreamAge)
	}
	if c.DrainTimeout <= 0 {
		problem("DRAIN_TIMEOUT is %v: want more than 0", c.DrainTimeout)
	}
	return errors.Join(problems...)
}

// What LOG_SERVER_TLS, LOG_SERVER_COMPRESSION and LOG_STREAMS may be.
const (
	auto = "auto"
	on   = "on"
	off  = "off"
	gzip = "gzip"
	none = "none"
)

// link returns how to reach the log server, with all that is auto decided.
func (c Config) link() link.Options {
	token := c.LogServerTokenFile != "" && !c.LogServerTokenPlaintext && !link.Loopback(c.LogServerAddr)
	sign := c.LogServerCAFile != "" || c.LogServerCertFile != "" || c.LogServerName != "" || token ||
		link.Port(c.LogServerAddr) == "443"
	return link.Options{
		Addr:           c.LogServerAddr,
		TLS:            c.LogServerTLS == on || c.LogServerTLS == auto && sign,
		CAFile:         c.LogServerCAFile,
		CertFile:       c.LogServerCertFile,
		KeyFile:        c.LogServerKeyFile,
		ServerName:     c.LogServerName,
		TokenFile:      c.LogServerTokenFile,
		TokenPlaintext: c.LogServerTokenPlaintext,
		Gzip:           c.LogServerCompression == gzip || c.LogServerCompression == auto && !link.Near(c.LogServerAddr),
		Connections:    c.LogServerConnections,
	}
}

// linkProblems returns what is wrong with the way to the log server.
func (c Config) linkProblems() []error {
	var problems []error
	problem := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	switch c.LogServerTLS {
	case auto, on:
	case off:
		for name, value := range map[string]string{
			"LOG_SERVER_CA_FILE": c.LogServerCAFile, "LOG_SERVER_CERT_FILE": c.LogServerCertFile, "LOG_SERVER_NAME": c.LogServerName,
		} {
			if value != "" {
				problem("%s is set, but LOG_SERVER_TLS is off", name)
			}
		}
		if c.LogServerTokenFile != "" && !c.LogServerTokenPlaintext && !link.Loopback(c.LogServerAddr) {
			problem("LOG_SERVER_TOKEN_FILE is set, but LOG_SERVER_TLS is off: whoever is on the way could read the token (LOG_SERVER_TOKEN_PLAINTEXT=true allows it)")
		}
	default:
		problem("LOG_SERVER_TLS is %q: want auto, on or off", c.LogServerTLS)
	}
	switch c.LogServerCompression {
	case auto, gzip, none:
	default:
		problem("LOG_SERVER_COMPRESSION is %q: want auto, gzip or none", c.LogServerCompression)
	}
	if c.LogServerConnections < 1 || c.LogServerConnections > 64 {
		problem("LOG_SERVER_CONNECTIONS is %d: want 1 to 64", c.LogServerConnections)
	}
	if c.LogServerCAFile != "" {
		if _, err := link.LoadRoots(c.LogServerCAFile); err != nil {
			problem("LOG_SERVER_CA_FILE: %w", err)
		}
	}
	switch {
	case c.LogServerCertFile == "" && c.LogServerKeyFile != "":
		problem("LOG_SERVER_KEY_FILE is set, but LOG_SERVER_CERT_FILE is not")
	case c.LogServerCertFile != "" && c.LogServerKeyFile == "":
		problem("LOG_SERVER_CERT_FILE is set, but LOG_SERVER_KEY_FILE is not")
	case c.LogServerCertFile != "":
		if _, err := link.LoadCertificate(c.LogServerCertFile, c.LogServerKeyFile); err != nil {
			problem("LOG_SERVER_CERT_FILE: %w", err)
		}
	}
	if c.LogServerTokenFile != "" {
		if _, err := link.ReadToken(c.LogServerTokenFile); err != nil {
			problem("LOG_SERVER_TOKEN_FILE: %w", err)
		}
	}
	return problems
}
