package logconformance_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/ottoscaler/ottoscaler/test/logconformance"
	"github.com/ottoscaler/ottoscaler/test/logserver"
)

var (
	addr    = flag.String("addr", "", "host:port of a log server to test; without one, the reference server is tested")
	ca      = flag.String("ca", "", "file of the authority of the server's certificate; turns TLS on")
	cert    = flag.String("cert", "", "file of the relay's certificate, with -key")
	key     = flag.String("key", "", "file of its key")
	token   = flag.String("token-file", "", "file with a token, sent as metadata \"authorization: Bearer <token>\"")
	restart = flag.String("restart", "", "shell command that restarts the server with its data and returns; adds the tests of a restart")
)

func TestConformance(t *testing.T) {
	if *addr == "" {
		logconformance.Run(t, reference(t))
		return
	}
	server := logconformance.Server{Addr: *addr, DialOptions: dialOptions(t)}
	if *restart != "" {
		server.Restart = func(ctx context.Context) error {
			command := exec.CommandContext(ctx, "sh", "-c", *restart) //nolint:gosec // the user's own
			command.Stdout, command.Stderr = os.Stdout, os.Stderr
			return command.Run()
		}
	}
	logconformance.Run(t, server)
}

// reference is the server of test/logserver, on a folder that outlives its restarts.
func reference(t *testing.T) logconformance.Server {
	t.Helper()
	dir := t.TempDir()
	listen := "127.0.0.1:0"
	stop := func() error { return nil }
	begin := func(context.Context) error {
		if err := stop(); err != nil {
			return err
		}
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			return err
		}
		listen = listener.Addr().String()
		_, end, err := logserver.Start(listener, logserver.Options{Dir: dir})
		if err != nil {
			return err
		}
		stop = end
		return nil
	}
	if err := begin(t.Context()); err != nil {
		t.Fatalf("starting the reference server: %v", err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return logconformance.Server{Addr: listen, Restart: begin}
}

func dialOptions(t *testing.T) []grpc.DialOption {
	t.Helper()
	transport := insecure.NewCredentials()
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil {
			t.Fatal(err)
		}
		config := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			t.Fatalf("%s has no certificate", *ca)
		}
		if *cert != "" {
			pair, err := tls.LoadX509KeyPair(*cert, *key)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		transport = credentials.NewTLS(config)
	}
	options := []grpc.DialOption{grpc.WithTransportCredentials(transport)}
	if *token != "" {
		text, err := os.ReadFile(*token)
		if err != nil {
			t.Fatal(err)
		}
		bearer := "Bearer " + strings.TrimSpace(string(text))
		options = append(options,
			grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				return invoke(metadata.AppendToOutgoingContext(ctx, "authorization", bearer), method, req, reply, cc, opts...)
			}),
			grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
				return stream(metadata.AppendToOutgoingContext(ctx, "authorization", bearer), desc, cc, method, opts...)
			}))
	}
	return options
}
