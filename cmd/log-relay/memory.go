package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/daemon"
)

// quiet is how long nothing is collected until we count as idle.
const quiet = 10 * time.Second

// collectionsToRest is how many collections it takes until nothing more becomes free: what
// lies in a pool outlives one, and a stack is halved by each at most.
const collectionsToRest = 3

const (
	// busyPercent and idlePercent are how much garbage there may be beside what is in use.
	// Thousands of followers that wait are much memory and hardly any garbage.
	busyPercent, idlePercent = 50, 20
	// busyCollections is how many collections within quiet end the idleness. To open a
	// thousand logs takes fewer.
	busyCollections = 50
)

// giveBack returns memory to the system once we are idle, until ctx ends. To open
// thousands of logs takes room, on stacks also, that their followers do not need while
// they wait. The runtime itself would come to it minutes later, and keep a half more.
func giveBack(ctx context.Context) error {
	ticker := time.NewTicker(quiet)
	defer ticker.Stop()
	collections := []metrics.Sample{{Name: "/gc/cycles/total:gc-cycles"}}
	var seen, returned uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		metrics.Read(collections)
		if now := collections[0].Value.Uint64(); now != seen {
			if now-seen >= busyCollections {
				daemon.KeepGarbage(busyPercent)
			}
			seen = now
			continue
		}
		if seen == returned {
			continue // there was nothing since
		}
		daemon.KeepGarbage(idlePercent)
		for range collectionsToRest {
			debug.FreeOSMemory()
		}
		metrics.Read(collections)
		seen = collections[0].Value.Uint64()
		returned = seen
	}
}
