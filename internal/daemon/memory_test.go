package daemon

import (
	"runtime/debug"
	"testing"
)

func TestGarbageIsKeptAsTheProgramSaysUnlessGOGCIsSet(t *testing.T) {
	const before = 123
	defer debug.SetGCPercent(debug.SetGCPercent(before))
	t.Setenv("GOGC", "70")
	KeepGarbage(400)
	if got := debug.SetGCPercent(before); got != before {
		t.Errorf("with GOGC: %d%% are kept, want what the runtime made of GOGC, here %d%%", got, before)
	}
	t.Setenv("GOGC", "")
	KeepGarbage(400)
	if got := debug.SetGCPercent(before); got != 400 {
		t.Errorf("without GOGC: %d%% are kept, want 400%%", got)
	}
}
