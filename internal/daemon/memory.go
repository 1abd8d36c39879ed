package daemon

import (
	"os"
	"runtime/debug"
)

// KeepGarbage has the runtime keep so much garbage, in percent of the memory in use,
// before it collects it: less takes less memory and more time. Where GOGC is set, that
// counts, at all times.
func KeepGarbage(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}
