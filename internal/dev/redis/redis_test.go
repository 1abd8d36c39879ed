package redis_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
)

func TestServersRunSideBySideAndAskForTheirPassword(t *testing.T) {
	one, two := redistest.ForTest(t, redis.Options{}), redistest.ForTest(t, redis.Options{})
	if one.Port == two.Port || one.Password == two.Password {
		t.Fatalf("two servers share port or password: %d, %d", one.Port, two.Port)
	}
	client := one.Client()
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	stranger := redis.Server{Addr: one.Addr, Password: two.Password}
	if err := stranger.Client().Get(t.Context(), "k").Err(); err == nil || !strings.HasPrefix(err.Error(), "WRONGPASS") {
		t.Errorf("reading with a wrong password: %v, want WRONGPASS", err)
	}
}

func TestThePasswordIsOnNoCommandLine(t *testing.T) {
	s := redistest.ForTest(t, redis.Options{})
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(files) == 0 {
		t.Fatalf("reading command lines: %d files, %v", len(files), err)
	}
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && strings.Contains(string(line), s.Password) {
			t.Errorf("%s shows the password", file)
		}
	}
}

func TestAKilledServerRemembersOnlyWithAppendOnly(t *testing.T) {
	for name, row := range map[string]struct {
		appendOnly bool
		keys       int64
	}{"with": {true, 1}, "without": {false, 0}} {
		t.Run(name, func(t *testing.T) {
			s := redistest.ForTest(t, redis.Options{AppendOnly: row.appendOnly})
			client := s.Client()
			if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
				t.Fatal(err)
			}
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := client.Ping(t.Context()).Err(); err == nil {
				t.Error("the killed server still answers")
			}
			addr := s.Addr
			if err := s.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.Addr != addr {
				t.Errorf("it moved from %s to %s", addr, s.Addr)
			}
			if got, err := client.Exists(t.Context(), "k").Result(); err != nil || got != row.keys {
				t.Errorf("keys after the restart = %d, %v, want %d", got, err, row.keys)
			}
		})
	}
}

func TestADetachedServerIsFoundAgainAndStopped(t *testing.T) {
	opts := redis.Options{Dir: filepath.Join(t.TempDir(), "state"), Detach: true}
	first := redistest.ForTest(t, opts)
	if err := first.Client().Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(opts.Dir, "redis.conf")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file with the password: %v, %v, want mode 0600", info, err)
	}
	again, err := redis.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	if again.Addr != first.Addr || again.Password != first.Password {
		t.Errorf("found %s, started %s", again.Addr, first.Addr)
	}
	if got, err := again.Client().Get(t.Context(), "k").Result(); err != nil || got != "v" {
		t.Errorf("the key = %q, %v", got, err)
	}
	if err := again.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := first.Client().Ping(t.Context()).Err(); err == nil {
		t.Error("it still answers after Stop")
	}
}

func TestStopLeavesNothingBehind(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s := redistest.ForTest(t, redis.Options{AppendOnly: true, Bind: []string{"127.0.0.1", "127.0.0.2"}})
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in the temporary folder: %v, %v", left, err)
	}
	out, err := exec.Command("sh", "-c", "cat /proc/net/tcp").Output()
	if err != nil {
		t.Fatal(err)
	}
	if port := strings.ToUpper(strconv.FormatInt(int64(s.Port), 16)); strings.Contains(string(out), ":"+port+" 00000000:0000 0A") {
		t.Errorf("something still listens on port %d", s.Port)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("stopping twice: %v", err)
	}
}
