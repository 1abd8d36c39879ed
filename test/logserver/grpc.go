package logserver

import (
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
