package nodelog

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A node has a folder of logs, which a real file server shows as a kubelet does.
type node struct {
	t      *testing.T
	dir    string // of the container
	client Client
	log    Log
	// before is called before each answer, with the path.
	before func(path string)
}

func newNode(t *testing.T) *node {
	t.Helper()
	root := t.TempDir()
	n := &node{t: t, dir: filepath.Join(root, "pods", "otto_w-1_uid-1", "agent")}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files := http.StripPrefix("/logs/", http.FileServer(http.Dir(root)))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.before != nil {
			n.before(r.URL.Path)
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(at.Port())
	if err != nil {
		t.Fatal(err)
	}
	n.client = Client{HTTP: server.Client(), Port: port}
	n.log = Log{Host: at.Hostname(), Namespace: "otto", Pod: "w-1", UID: "uid-1", Container: "agent"}
	return n
}

// write writes a file that was left alone for a while.
func (n *node) write(name string, entries ...string) {
	n.t.Helper()
	text := []byte(strings.Join(entries, "\n") + "\n")
	if strings.HasSuffix(name, ".gz") {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		_, err := w.Write(text)
		if err = errors.Join(err, w.Close()); err != nil {
			n.t.Fatal(err)
		}
		text = packed.Bytes()
	}
	path := filepath.Join(n.dir, name)
	old := time.Now().Add(-time.Minute)
	if err := errors.Join(os.WriteFile(path, text, 0o644), os.Chtimes(path, old, old)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) rename(from, to string) {
	n.t.Helper()
	if err := os.Rename(filepath.Join(n.dir, from), filepath.Join(n.dir, to)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) remove(name string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.dir, name)); err != nil {
		n.t.Fatal(err)
	}
}

// wantLog compares what is read with the texts of lines.
func (n *node) wantLog(whole bool, want ...string) {
	n.t.Helper()
	r, err := n.client.Open(n.t.Context(), n.log)
	if err != nil {
		n.t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // it is only read
	got, err := io.ReadAll(r)
	if err != nil {
		n.t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(got)) {
		lines = append(lines, strings.TrimSuffix(line, "\n"))
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		n.t.Errorf("the log (-want +got):\n%s", diff)
	}
	if r.Whole() != whole {
		n.t.Errorf("whole: got %t, want %t", r.Whole(), whole)
	}
	if rotated, err := n.client.Rotated(n.t.Context(), n.log); err != nil || (len(rotated) == 0) != whole {
		n.t.Errorf("rotated: got %v, %v, want some: %t", rotated, err, !whole)
	}
}

// entry is a line of a file, and line the same as the API gives it.
func entry(second int, tag, text string) string {
	return fmt.Sprintf("2026-11-25T12:00:%02d.5Z stdout %s %s", second, tag, text)
}

func line(second int, text string) string {
	return fmt.Sprintf("2026-11-25T12:00:%02d.500000000Z %s", second, text)
}

func TestRotatedFilesAreReadInTheirOrder(t *testing.T) {
	n := newNode(t)
	n.write("0.log.20261125-120010.gz", entry(1, "F", "one"), entry(2, "F", "two"))
	n.write("0.log.20261125-120020.gz", entry(11, "F", "three"))
	n.write("0.log.20261125-120030", entry(21, "F", "four"))
	n.write("0.log", entry(31, "F", "five"))
	// None of these are of this log, or whole.
	n.write("1.log", entry(41, "F", "of the next run"))
	n.write("1.log.20261125-120050", entry(40, "F", "of the next run"))
	n.write("0.log.20261125-120030.tmp", entry(21, "F", "half"))
	n.write("0.log.old", entry(1, "F", "somebody's copy"))
	all := []string{line(1, "one"), line(2, "two"), line(11, "three"), line(21, "four"), line(31, "five")}
	n.wantLog(false, all...)

	for _, row := range []struct{ since, from int }{{1, 0}, {3, 0}, {11, 0}, {12, 2}, {22, 3}, {32, 4}, {59, 4}} {
		n.log.Since = time.Date(2026, 11, 25, 12, 0, row.since, 0, time.UTC)
		n.wantLog(false, all[row.from:]...)
	}
}

func TestLogThatWasNeverRotatedIsWhole(t *testing.T) {
	n := newNode(t)
	n.write("0.log", entry(1, "F", "one"))
	n.wantLog(true, line(1, "one"))
}

func TestFilesOfANodeWhoseClockSteppedBackAreReadInOrder(t *testing.T) {
	// The names are in local time; when summer ends, the second one is an hour "earlier".
	n := newNode(t)
	n.write("0.log.20261025-025500", entry(1, "F", "one"))
	n.write("0.log.20261025-020500", entry(2, "F", "two"))
	n.write("0.log", entry(3, "F", "three"))
	n.wantLog(false, line(1, "one"), line(2, "two"), line(3, "three"))
}

func TestPartsOfALineAreJoined(t *testing.T) {
	n := newNode(t)
	n.write("0.log.20261125-120010.gz", entry(1, "F", "one"), entry(2, "P", "tw"), entry(3, "P:more", "o, and"))
	n.write("0.log.20261125-120020", entry(11, "F", " its end"), entry(12, "F", ""), entry(12, "F", " P F "))
	n.write("0.log", entry(21, "P", "yet to"))
	n.wantLog(false, line(1, "one"), line(2, "two, and its end"), line(12, ""), line(12, " P F "), line(21, "yet to"))
}

func TestLongEntriesComeWhole(t *testing.T) {
	n := newNode(t)
	long := strings.Repeat("x", 3*fileBuffer+7)
	n.write("0.log.20261125-120010", entry(1, "F", long), entry(2, "P", long), entry(3, "F", long))
	n.write("0.log", entry(4, "F", "short"))
	n.wantLog(false, line(1, long), line(2, long+long), line(4, "short"))
}

func TestWhatIsNoEntryIsLeftOut(t *testing.T) {
	n := newNode(t)
	n.write("0.log", entry(1, "F", "one"), "what is this", "2026-11-25T12:00:01Z stdin F no stream", "2026-11-25T12:00:01Z stdout", entry(2, "F", "bin\x00ary \xff"))
	n.wantLog(true, line(1, "one"), line(2, "bin\x00ary \xff"))
}

func TestFilesOfAnotherFormatAreRefused(t *testing.T) {
	n := newNode(t)
	n.write("0.log", `{"log":"one\n","stream":"stdout","time":"2026-11-25T12:00:01.5Z"}`)
	if r, err := n.client.Open(t.Context(), n.log); err == nil {
		got, _ := io.ReadAll(r)
		t.Errorf("got %q, want an error", got)
	}
}

func TestUnfinishedEntryCountsOnceTheContainerHasEnded(t *testing.T) {
	n := newNode(t)
	n.write("0.log.20261125-120010", entry(1, "F", "one"))
	path := filepath.Join(n.dir, "0.log")
	if err := os.WriteFile(path, []byte(entry(2, "F", "two")+"\n"+entry(3, "F", "no line end")), 0o644); err != nil {
		t.Fatal(err)
	}
	n.wantLog(false, line(1, "one"), line(2, "two"))
	n.log.Ended = true
	n.wantLog(false, line(1, "one"), line(2, "two"), line(3, "no line end"))
}

func TestRotationMeanwhileLosesNothing(t *testing.T) {
	all := []string{line(1, "one"), line(11, "two"), line(21, "three")}
	const first, second = "0.log.20261125-120010", "0.log.20261125-120020"
	for _, row := range []struct {
		what     string
		at       string // the file that is asked for when it happens; "" is the list
		do       func(n *node)
		from, to int // of all
	}{
		{"the current file is rotated before it is opened", "0.log", func(n *node) {
			n.rename("0.log", second)
			n.write("0.log", entry(21, "F", "three"))
		}, 0, 3},
		{"the same, and the next one is not open yet", "0.log", func(n *node) {
			n.rename("0.log", second)
			n.before = func(path string) { // until somebody looks again
				if strings.HasSuffix(path, "/") {
					n.before = nil
					n.write("0.log", entry(21, "F", "three"))
				}
			}
		}, 0, 3},
		{"a rotated file is compressed before it is opened", first, func(n *node) {
			n.remove(first)
			n.write(first+".gz", entry(1, "F", "one"))
		}, 0, 2},
		{"a rotated file is removed before it is opened", first, func(n *node) {
			n.remove(first)
		}, 1, 2},
		{"the current file is rotated when the files were listed", "", func(n *node) {
			n.rename("0.log", second)
			n.write("0.log", entry(21, "F", "three"))
		}, 0, 3},
	} {
		t.Run(row.what, func(t *testing.T) {
			n := newNode(t)
			n.write(first, entry(1, "F", "one"))
			n.write("0.log", entry(11, "F", "two"))
			n.before = func(path string) {
				if strings.HasSuffix(path, "/agent/"+row.at) {
					n.before = nil
					row.do(n)
				}
			}
			n.wantLog(row.from > 0, all[row.from:row.to]...)
		})
	}
}

func TestFileThatIsRemovedWhileItIsReadIsReadToItsEnd(t *testing.T) {
	n := newNode(t)
	text := strings.Repeat("x", 1000)
	var entries, want []string
	for range 20_000 { // more than the connection holds
		entries = append(entries, entry(1, "F", text))
		want = append(want, line(1, text))
	}
	n.write("0.log.20261125-120010", entries...)
	n.write("0.log", entry(2, "F", "two"))
	r, err := n.client.Open(t.Context(), n.log)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // it is only read
	n.remove("0.log.20261125-120010")
	n.remove("0.log")
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != strings.Join(append(want, line(2, "two")), "\n")+"\n" {
		t.Errorf("got %d bytes, which are not what was there", len(got))
	}
}

func TestFileThatWasRotatedJustNowIsWaitedFor(t *testing.T) {
	// The runtime writes to it until it has opened the next one.
	n := newNode(t)
	n.write("0.log", entry(2, "F", "three"))
	path := filepath.Join(n.dir, "0.log.20261125-120010")
	if err := os.WriteFile(path, []byte(entry(1, "F", "one")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	asked := 0
	n.before = func(p string) {
		if asked++; strings.HasSuffix(p, "/0.log.20261125-120010") {
			n.before = nil
			// When it was looked at once, the rest comes, and then it rests.
			t.Cleanup(func() {
				if asked == 0 {
					t.Error("nobody has looked")
				}
			})
			go func() {
				<-time.After(100 * time.Millisecond)
				n.write("0.log.20261125-120010", entry(1, "F", "one"), entry(1, "F", "two"))
			}()
		}
	}
	n.wantLog(false, line(1, "one"), line(1, "two"), line(2, "three"))
}

func TestWhatIsNotThereIsSaidSo(t *testing.T) {
	n := newNode(t)
	n.log.Ended = true
	if _, err := n.client.Open(t.Context(), n.log); !errors.Is(err, ErrNone) {
		t.Errorf("an empty folder: got %v, want %v", err, ErrNone)
	}
	if _, err := n.client.Rotated(t.Context(), n.log); !errors.Is(err, ErrNone) {
		t.Errorf("whether an empty folder was rotated: got %v, want %v", err, ErrNone)
	}
	n.log.Container = "other"
	if _, err := n.client.Open(t.Context(), n.log); !errors.Is(err, ErrNone) {
		t.Errorf("no folder: got %v, want %v", err, ErrNone)
	}
	n.log.Ended = false
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	if _, err := n.client.Open(ctx, n.log); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no time: got %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestARefusalIsTold(t *testing.T) {
	for code, refused := range map[int]bool{
		http.StatusForbidden: true, http.StatusMethodNotAllowed: true, http.StatusUnauthorized: false, http.StatusInternalServerError: false,
		http.StatusFound: false,
	} {
		server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "no\nreason", code)
		}))
		at, err := url.Parse(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		port, _ := strconv.Atoi(at.Port())
		client := Client{HTTP: server.Client(), Port: port}
		log := Log{Host: at.Hostname(), Namespace: "otto", Pod: "w-1", UID: "uid-1", Container: "agent"}
		if _, err := client.Open(t.Context(), log); err == nil || errors.Is(err, ErrRefused) != refused || strings.Contains(err.Error(), "\n") {
			t.Errorf("status %d: got %v, want a refusal: %t", code, err, refused)
		}
		client.HTTP = &http.Client{} // which does not trust it
		if _, err := client.Open(t.Context(), log); !errors.Is(err, ErrRefused) {
			t.Errorf("a certificate that nobody knows: got %v, want a refusal", err)
		}
		server.Close()
	}
}
