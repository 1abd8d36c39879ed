package daemon

import (
	"fmt"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// KeepGarbage has the runtime keep so much garbage, in percent of the memory in use,
// before it collects it: less takes less memory and more time. Where GOGC is set, that
// counts, at all times.
func KeepGarbage(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// limitMemory has the runtime collect garbage more often when it comes near the limit of
// the container, rather than be killed for it. GOMEMLIMIT overrides that.
func limitMemory() error {
	if _, err := memlimit.Set(); err != nil {
		return fmt.Errorf("reading the memory limit: %w", err)
	}
	return nil
}
