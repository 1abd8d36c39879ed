package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ottoscaler/ottoscaler/internal/dev/docker"
)

func engineInfo(ctx context.Context) (EngineInfo, error) {
	if err := Engine(ctx); err != nil {
		return EngineInfo{}, err
	}
	out, err := docker.Run(ctx, "info", "--format", "{{json .}}")
	if err != nil {
		return EngineInfo{}, explain(err)
	}
	var info EngineInfo
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return EngineInfo{}, fmt.Errorf("reading docker info: %w", err)
	}
	return info, nil
}

func free(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, err
	}
	return fs.Bavail * uint64(fs.Bsize), nil //nolint:gosec // a block has a size
}

func portTaken(ctx context.Context, port string) bool {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil {
		return false
	}
	_ = conn.Close() // it has served its purpose
	return true
}

func running(ctx context.Context, container string) bool {
	c, err := docker.InspectContainer(ctx, container)
	return err == nil && c.State.Running
}
