package logserver

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// NewGRPCServer serves the protocol as the relay needs it: it pings every 30
// seconds, which gRPC servers in Go take for an attack unless they are told.
func NewGRPCServer(server *Server, options ...grpc.ServerOption) *grpc.Server {
	options = append([]grpc.ServerOption{
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}, options...)
	s := grpc.NewServer(options...)
	logsv1.RegisterLogServiceServer(s, server)
	return s
}

// Start makes a server and serves it on a listener, until stop is called. That ends its
// streams, and returns what ended the serving before, if anything did. It may be called
// again.
func Start(listener net.Listener, options Options) (server *Server, stop func() error, err error) {
	server, err = New(options)
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	s := NewGRPCServer(server)
	served := make(chan error, 1)
	go func() { served <- s.Serve(listener) }()
	return server, sync.OnceValue(func() error {
		s.Stop()
		if err := <-served; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // which it may be before it serves
			return fmt.Errorf("serving logs: %w", err)
		}
		return nil
	}), nil
}
