package environment

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/unicode/norm"
)

func anyPort(int) bool { return true }

// checkout makes a source tree with the chart, which is all that is needed of it.
func checkout(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "charts"), os.DirFS("../../../charts")); err != nil {
		t.Fatal(err)
	}
	return root
}

func ensure(t *testing.T, root, user string) *Environment {
	t.Helper()
	e, _, err := Ensure(root, user, anyPort)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEveryNameGetsAnASCIISlugThatStays(t *testing.T) {
	for user, want := range map[string]string{
		"jinwoo":     "jinwoo",
		"Jin Woo":    "jin-woo",
		"jin_woo":    "jin-woo",
		"한진우":        "hanjinu",
		"José María": "jose-maria",
		"Łukasz":     "lukasz",
		"محمد":       "mhmd",
		"a'b;rm -rf": "ab-rm-rf",
		"42":         "42",
	} {
		if got, err := Slug(user); got != want || err != nil {
			t.Errorf("slug of %q: got %q, %v, want %q", user, got, err, want)
		}
		// macOS takes letters apart.
		if got, err := Slug(norm.NFD.String(user)); got != want || err != nil {
			t.Errorf("slug of %q in NFD: got %q, %v, want %q", user, got, err, want)
		}
	}
}

func TestNamesWithoutASlugAreRefused(t *testing.T) {
	for _, user := range []string{"", " ", "🤖", "---", "__", strings.Repeat("x", maxSlug+1)} {
		if got, err := Slug(user); err == nil || !strings.Contains(err.Error(), "name") {
			t.Errorf("slug of %q: got %q, %v, want an error that asks for another name", user, got, err)
		}
	}
	longest := strings.Repeat("x", maxSlug)
	if host := "ottoscaler-" + longest + "-control-plane"; len(host) != 63 {
		t.Errorf("host name of the longest slug's node has %d characters, want 63", len(host))
	}
}

func TestASecondRunChangesNothing(t *testing.T) {
	root := checkout(t)
	first, did, err := Ensure(root, "한진우", anyPort)
	if err != nil || did != "made" {
		t.Fatalf("first run: %s, %v, want made", did, err)
	}
	before, err := os.ReadFile(first.File())
	if err != nil {
		t.Fatal(err)
	}
	second, did, err := Ensure(root, "한진우", anyPort)
	if err != nil || did != "kept" {
		t.Fatalf("second run: %s, %v, want kept", did, err)
	}
	after, err := os.ReadFile(first.File())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(before), string(after)); diff != "" {
		t.Errorf("the file changed (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(first.Vars, second.Vars); diff != "" {
		t.Errorf("the variables changed (-first +second):\n%s", diff)
	}
	if info, err := os.Stat(first.File()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a file with a password: %v, %v, want 0600", info.Mode(), err)
	}
}

func TestAnInterruptedFileIsCompletedAndWhatTheUserChangedStays(t *testing.T) {
	root := checkout(t)
	file := filepath.Join(root, ".env.jinwoo.local")
	mine := "# my own remark\nLOG_SERVER_ADDR=10.0.0.1:9000\nREDIS_PORT=17000" // no line feed: cut off
	if err := os.WriteFile(file, []byte(mine), 0o600); err != nil {
		t.Fatal(err)
	}
	_, did, err := Ensure(root, "jinwoo", anyPort)
	if err != nil || did != "completed" {
		t.Fatalf("got %s, %v, want completed", did, err)
	}
	e, err := Open(root, "jinwoo")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		LogServer: "10.0.0.1:9000", RedisPort: "17000", User: "jinwoo", RedisHost: "127.0.0.1", KindCluster: "ottoscaler-jinwoo",
		Kubeconfig: filepath.Join(root, ".env.jinwoo.kubeconfig"),
	} {
		if got := e.Vars[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if e.Vars[RedisPassword] == "" {
		t.Error("there is no password")
	}
	content, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(content), mine+"\n") {
		t.Errorf("what was there has changed: %v\n%s", err, content)
	}
}

func TestUsersShareNeitherPortNorPassword(t *testing.T) {
	root := checkout(t)
	busy := map[string]bool{ensure(t, root, "a").Vars[RedisPort]: true}
	secrets := map[string]bool{ensure(t, root, "a").Vars[RedisPassword]: true}
	// These would begin to look at the same port.
	for _, user := range []string{"b", "c", "d"} {
		e, _, err := Ensure(root, user, func(port int) bool { return port != firstPort+int('b')%ports })
		if err != nil {
			t.Fatal(err)
		}
		if busy[e.Vars[RedisPort]] || secrets[e.Vars[RedisPassword]] {
			t.Errorf("%s has a port or a password of somebody else: %v", user, e.Vars)
		}
		busy[e.Vars[RedisPort]], secrets[e.Vars[RedisPassword]] = true, true
	}
	if _, _, err := Ensure(root, "e", func(int) bool { return false }); err == nil {
		t.Error("without a free port: got no error")
	}
}

func TestALostFileComesBackWithTheSamePort(t *testing.T) {
	root := checkout(t)
	e := ensure(t, root, "jinwoo")
	if err := os.Remove(e.File()); err != nil {
		t.Fatal(err)
	}
	if got, want := ensure(t, root, "jinwoo").Vars[RedisPort], e.Vars[RedisPort]; got != want {
		t.Errorf("port: got %s, want %s", got, want)
	}
}

func TestNamesThatClashAreRefused(t *testing.T) {
	root := checkout(t)
	ensure(t, root, "한진우")
	_, _, err := Ensure(root, "hanjinu", anyPort)
	if err == nil || !strings.Contains(err.Error(), "한진우") || !strings.Contains(err.Error(), "another name") {
		t.Errorf("got %v, want an error that names who has it", err)
	}
}

func TestTheEnvironmentIsTheOneThatIsMeant(t *testing.T) {
	root := checkout(t)
	if _, err := Select(root, "", ""); err == nil || !strings.Contains(err.Error(), "make setup-user USER=") {
		t.Errorf("without any: got %v, want the remedy", err)
	}
	t.Setenv("USER", "root") // who is logged in must not matter
	ensure(t, root, "한진우")
	if e, err := Select(root, "", ""); err != nil || e.User() != "한진우" {
		t.Errorf("the only one: got %v, %v", e, err)
	}
	ensure(t, root, "jinwoo")
	for name, row := range map[string]struct{ user, file, want, says string }{
		"by name":            {user: "한진우", want: "hanjinu"},
		"by slug":            {user: "hanjinu", want: "hanjinu"},
		"by file":            {file: "/anywhere/.env.jinwoo.local", want: "jinwoo"},
		"name before file":   {user: "jinwoo", file: ".env.hanjinu.local", want: "jinwoo"},
		"nobody said":        {says: "jinwoo, 한진우"},
		"unknown":            {user: "minji", says: "make setup-user USER=minji"},
		"spelled the same":   {user: "HanJinu", says: "that of 한진우"},
		"not such a file":    {file: "prod.env", says: ".env.<user>.local"},
		"a name of no slug":  {user: "🤖", says: "another name"},
		"a file of no owner": {file: ".env.minji.local", says: ".env.minji.local"},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := Select(root, row.user, row.file)
			switch {
			case row.want == "" && (err == nil || !strings.Contains(err.Error(), row.says)):
				t.Errorf("got %v, want an error that says %q", err, row.says)
			case row.want != "" && (err != nil || e.Slug != row.want):
				t.Errorf("got %v, %v, want %s", e, err, row.want)
			}
		})
	}
}

func TestFilesThatAreNotOursAreNotListed(t *testing.T) {
	root := checkout(t)
	ensure(t, root, "jinwoo")
	for _, name := range []string{".env.local", ".env.Prod Env.local", ".env.a.b.local"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("X=1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := List(root)
	if err != nil || len(list) != 1 || list[0].Slug != "jinwoo" {
		t.Errorf("got %v, %v, want jinwoo alone", list, err)
	}
}

// The chart's example is what make setup-user makes for jinwoo, to the byte.
func TestTheExampleValuesAreThoseOfTheTemplate(t *testing.T) {
	root := checkout(t)
	e := ensure(t, root, "jinwoo")
	example, err := os.ReadFile(e.ValuesFile())
	if err != nil {
		t.Fatal(err)
	}
	made, err := e.Values()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(example), string(made)); diff != "" {
		t.Errorf("values-jinwoo.yaml (-there +made):\n%s", diff)
	}
}

func TestTheSchemaAcceptsEveryUsersValues(t *testing.T) {
	root := checkout(t)
	for _, user := range []string{"한진우", "42", "true", "1e3", "null", "0x1f", strings.Repeat("x", maxSlug)} {
		e := ensure(t, root, user)
		if did, err := e.EnsureValues(); did != "made" || err != nil {
			t.Errorf("values of %s: %s, %v", user, did, err)
		}
		if did, err := e.EnsureValues(); did != "kept" || err != nil {
			t.Errorf("values of %s, again: %s, %v", user, did, err)
		}
	}
}

func TestValuesThatTheSchemaRefusesAreNamed(t *testing.T) {
	root := checkout(t)
	e := ensure(t, root, "minji")
	if err := os.WriteFile(e.ValuesFile(), []byte("user: minji\nconsumr: {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := e.EnsureValues(); err == nil || !strings.Contains(err.Error(), "consumr") || !strings.Contains(err.Error(), "values-minji.yaml") {
		t.Errorf("got %v, want an error with the file and the key", err)
	}
}

func TestWhatIsLeftOfALostEnvironmentCanBeFound(t *testing.T) {
	root := checkout(t)
	if _, err := Open(root, "jinwoo"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("got %v, want fs.ErrNotExist", err)
	}
	e, err := Named(root, "jinwoo")
	if err != nil || e.Vars[KindCluster] != "ottoscaler-jinwoo" {
		t.Errorf("got %v, %v", e, err)
	}
}
