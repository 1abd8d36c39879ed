package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func secrets(values ...string) []Secret {
	var all []Secret
	for i, v := range values {
		all = append(all, Secret{fmt.Sprintf("s/%d", i), []byte(v)})
	}
	return all
}

func mustParse(t testing.TB, text string) []*regexp.Regexp {
	t.Helper()
	patterns, err := ParsePatterns(text)
	if err != nil {
		t.Fatal(err)
	}
	return patterns
}

func TestSecretsAreHidden(t *testing.T) {
	const key = "-----BEGIN KEY-----\nMIIabc/+\n  def0\nx\n-----END KEY-----\n"
	for _, row := range []struct {
		name, secret, patterns, line, want string
	}{
		{"a value", "hunter2", "", "password is hunter2.", "password is ***."},
		{"nothing to hide", "hunter2", "", "password is hunter3.", "password is hunter3."},
		{"twice", "hunter2", "", "hunter2 hunter2", "*** ***"},
		{"side by side", "hunter2", "", "hunter2hunter2", "***"},
		{"overlapping itself", "abcabc", "", "xabcabcabcx", "x***x"},
		{"all of the line", "hunter2", "", "hunter2", "***"},
		{"a line end that is not the secret's", "hunter2\n", "", "hunter2!", "***!"},
		{"a line of several", key, "", "see MIIabc/+ there", "see *** there"},
		{"a line of several, indented otherwise", key, "", "def0", "***"},
		{"a short line of several", key, "", "x", "x"},
		{"several lines in JSON", key, "", `{"k":"-----BEGIN KEY-----\nMIIabc/+\n  def0\nx\n-----END KEY-----\n"}`, `{"k":"***\n"}`},
		{"too short", "abc", "", "abc", "abc"},
		{"binary", "\x00\xff\xfe\x01\x02", "", "a\x00\xff\xfe\x01\x02b", "a***b"},
		{"in a URL", "p@ss w/rd&", "", "https://u:p%40ss+w%2Frd%26@x p%40ss%20w%2Frd%26@ p@ss%20w%2Frd&@", "https://u:***@x ***@ ***@"},
		{"in JSON", `a"b\<c>`, "", `{"p":"a\"b\\\u003cc\u003e","q":"a\"b\\<c>"}`, `{"p":"***","q":"***"}`},
		{"in base64", "swordfish", "", base64.StdEncoding.EncodeToString([]byte("swordfish")), "***"},
		{"in base64 with padding", "swordfish1", "", base64.StdEncoding.EncodeToString([]byte("swordfish1")), "***"},
		{"in base64 as echo makes it", "swordfish1", "", base64.StdEncoding.EncodeToString([]byte("swordfish1\n")), "***"},
		{"in base64 for URLs", "\xff\xef\xbe\xff\xef\xbe", "", base64.RawURLEncoding.EncodeToString([]byte("\xff\xef\xbe\xff\xef\xbe")), "***"},
		{"a pattern", "", `ghp_[A-Za-z0-9]+`, "token ghp_abc123, ghp_x", "token ***, ***"},
		{"a pattern with a group", "", `password=(\S+)`, "password=abc user=u", "password=*** user=u"},
		{"a pattern with a group that took no part", "", `(a+)x|(b+)y`, "bbby aaax", "***y ***x"},
		{"a pattern that finds a letter", "", `[0-9]`, "a1b", "a*b"},
		{"a pattern and a value that overlap", "abcd-efgh", `d-\w+`, "abcd-efghijk", "***"},
	} {
		var values []Secret
		if row.secret != "" {
			values = secrets(row.secret)
		}
		m, _ := New(values, mustParse(t, row.patterns))
		var lines Lines
		if got := string(lines.Next(m, []byte(row.line+"\n"), false)); got != row.want+"\n" {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
}

func TestOverlappingSecretsLeaveNothingOfEither(t *testing.T) {
	m, _ := New(secrets("abcdef", "defghi", "bcde", "abcdefgh"), nil)
	if got, want := m.Text("<abcdefghi> <abcdefg> <abcde> <xdefghi>"), "<***> <***g> <a***> <x***>"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestShortValuesAreNamedAndNotShown(t *testing.T) {
	_, short := New([]Secret{{"a/pin", []byte("123")}, {"a/long", []byte("12345")}, {"a/none", nil}, {"b/key", []byte("long enough\nab\n")}}, nil)
	if diff := cmp.Diff([]string{"a/pin", "b/key"}, short); diff != "" {
		t.Errorf("short (-want +got):\n%s", diff)
	}
}

func TestEveryPatternThatIsNoneIsNamed(t *testing.T) {
	_, err := ParsePatterns("fine\n[\n\nx*\n)")
	for _, want := range []string{"line 2:", "line 4: x* matches everywhere", "line 5:"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestNobodyHidesNothing(t *testing.T) {
	var lines Lines
	line := []byte("as it was\n")
	if got := lines.Next(nil, line, false); &got[0] != &line[0] {
		t.Errorf("got %q", got)
	}
	var m *Masker
	if got := m.Text("a\nb"); got != "a\nb" {
		t.Errorf("got %q", got)
	}
}

func TestLongSecretsAreHiddenWhole(t *testing.T) {
	value := strings.Repeat("0123456789abcdef", 3000) + "xyz"
	m, _ := New(secrets(value), nil)
	if got := m.Text("<" + value + ">"); got != "<***>" {
		t.Errorf("%d bytes are left: %.60q", len(got), got)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(value))
	if got := m.Text("<" + encoded + ">"); got != "<***>" {
		t.Errorf("encoded: %d bytes are left: %.60q", len(got), got)
	}
	for _, width := range []int{64, 76} {
		var wrapped []string
		for rest := encoded; rest != ""; rest = rest[min(width, len(rest)):] {
			wrapped = append(wrapped, rest[:min(width, len(rest))])
		}
		for i, line := range strings.Split(m.Text(strings.Join(wrapped, "\n")), "\n") {
			if line != "***" && len(wrapped[i]) >= minEncoded {
				t.Errorf("line %d of base64 broken after %d: %q", i, width, line)
			}
		}
	}
}

// drawLine draws values to hide and a line that is made of them, of parts of them and
// of other text. The alphabet is small, so that values overlap each other and the line.
func drawLine(t *rapid.T) (values []string, line []byte) {
	letters := rapid.SampledFrom([]byte("aab-/ "))
	for range rapid.IntRange(1, 4).Draw(t, "number of values") {
		values = append(values, string(rapid.SliceOfN(letters, rapid.IntRange(0, 4).Draw(t, "at least"), 12).Draw(t, "value")))
	}
	for range rapid.IntRange(0, 8).Draw(t, "number of pieces") {
		piece := []byte(rapid.SampledFrom(values).Draw(t, "of a value"))
		switch rapid.IntRange(0, 3).Draw(t, "kind of piece") {
		case 0:
			piece = rapid.SliceOfN(letters, 0, 6).Draw(t, "text")
		case 1:
			piece = piece[rapid.IntRange(0, len(piece)).Draw(t, "from"):]
		case 2:
			piece = piece[:rapid.IntRange(0, len(piece)).Draw(t, "to")]
		}
		line = append(line, piece...)
	}
	return values, line
}

// naive is what the masker must do, in the plainest way.
func naive(values []string, line string) string {
	hidden := make([]bool, len(line))
	for _, v := range values {
		for i := 0; i+len(v) <= len(line); i++ {
			if line[i:i+len(v)] == v {
				for j := range len(v) {
					hidden[i+j] = true
				}
			}
		}
	}
	var b strings.Builder
	for i := range hidden {
		switch {
		case !hidden[i]:
			b.WriteByte(line[i])
		case i == 0 || !hidden[i-1]:
			b.WriteString(stars)
		}
	}
	return b.String()
}

func TestHidesAsThePlainestWayWould(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values, drawn := drawLine(t)
		all := map[string]struct{}{}
		for _, v := range values {
			addForms(all, v)
		}
		m, _ := New(secrets(values...), nil)
		var forms []string
		for form := range all {
			forms = append(forms, form)
		}
		line := string(drawn)
		if got, want := m.Text(line), naive(forms, line); got != want {
			t.Errorf("values %q, line %q: got %q, want %q", values, line, got, want)
		}
	})
}

// However a line is cut into parts, the parts together are the line as it would be
// without cuts, but for stars that were given out twice.
func TestPartsOfALineHideWhatTheWholeHides(t *testing.T) {
	once := regexp.MustCompile(`\*+`)
	rapid.Check(t, func(t *rapid.T) {
		values, line := drawLine(t)
		m, _ := New(secrets(values...), nil)
		want := m.Text(string(line))
		var lines Lines
		var got []byte
		for rest := line; ; {
			n := rapid.IntRange(0, len(rest)).Draw(t, "part")
			more := n < len(rest)
			part := lines.Next(m, append(slices.Clone(rest[:n]), '\n'), more)
			if len(part) == 0 || part[len(part)-1] != '\n' {
				t.Fatalf("a part without an end: %q", part)
			}
			got = append(got, part[:len(part)-1]...)
			if rest = rest[n:]; !more {
				break
			}
		}
		if g, w := once.ReplaceAllString(string(got), "*"), once.ReplaceAllString(want, "*"); g != w {
			t.Errorf("values %q, line %q: got %q, want %q", values, line, g, w)
		}
	})
}

func TestEncodedWithinALongerTextIsHidden(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.SliceOfN(rapid.Byte(), 10, 60).Draw(t, "value")
		value = bytes.ReplaceAll(value, []byte("\n"), []byte("x"))
		value = bytes.TrimSpace(bytes.ReplaceAll(value, []byte("\r"), []byte("y")))
		if len(value) < 10 {
			t.Skip("too little is left")
		}
		before, after := rapid.SliceOf(rapid.Byte()).Draw(t, "before"), rapid.SliceOf(rapid.Byte()).Draw(t, "after")
		m, _ := New([]Secret{{"s", value}}, nil)
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			line := encoding.EncodeToString(slices.Concat(before, value, after))
			masked := m.Text(line)
			if !strings.Contains(masked, stars) {
				t.Fatalf("%q in %q stays", value, line)
			}
			// At most a byte of the value at each end, which shares a character with its neighbour.
			if len(masked) > len(stars)+(len(before)+len(after)+4)*4/3+4 {
				t.Errorf("%q in %q: too much is left: %q", value, line, masked)
			}
		}
		if got := m.Text(url.QueryEscape(string(value))); got != stars {
			t.Errorf("in a URL: %q", got)
		}
		if asJSON, err := json.Marshal(map[string]string{"k": string(value)}); err == nil {
			if got := m.Text(string(asJSON)); got != `{"k":"***"}` && !strings.HasSuffix(string(value), `"`) {
				t.Errorf("%q in JSON: %q", value, got)
			}
		}
	})
}

func FuzzLinesAreHiddenAndNeverGrow(f *testing.F) {
	f.Add([]byte("hunter2"), []byte("swordfish"), []byte("a hunter2 b swordfish"), uint8(5))
	f.Add([]byte("aaaa"), []byte("aaab"), []byte("aaaaaaab"), uint8(3))
	f.Add([]byte("a\nbcdefg\n\xff\xff\xff\xff"), []byte(""), []byte("bcdefg\xff\xff\xff\xff"), uint8(0))
	f.Fuzz(func(t *testing.T, one, two, line []byte, cut uint8) {
		line = bytes.ReplaceAll(line, []byte("\n"), nil)
		m, _ := New([]Secret{{"1", one}, {"2", two}}, nil)
		all := map[string]struct{}{}
		addForms(all, string(one))
		addForms(all, string(two))
		var forms []string
		for form := range all {
			forms = append(forms, form)
		}
		got := m.Text(string(line))
		if want := naive(forms, string(line)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if len(got) > len(line) {
			t.Errorf("%q grew to %q", line, got)
		}
		if again := m.Text(string(line)); again != got {
			t.Errorf("once %q, then %q", got, again)
		}
		n := min(int(cut), len(line))
		var lines Lines
		first := bytes.Clone(lines.Next(m, append(bytes.Clone(line[:n]), '\n'), true))
		second := lines.Next(m, append(bytes.Clone(line[n:]), '\n'), false)
		if total := len(first) + len(second) - 2; total > len(line)+len(stars) {
			t.Errorf("%q in parts grew to %q and %q", line, first, second)
		}
	})
}

func BenchmarkLine(b *testing.B) {
	line := []byte("2026-11-25T13:00:00Z INFO step 7 of 12: compiling module example.test/build/worker/cmd/agent took 1.234s in 8 goroutines\n")
	for _, n := range []int{0, 10, 100} {
		var all []Secret
		for i := range n {
			all = append(all, Secret{"s", fmt.Appendf(nil, "%d-secret-of-forty-characters-%010d", i*7919, i)})
		}
		m, _ := New(all, nil)
		b.Run(fmt.Sprintf("secrets=%d", n), func(b *testing.B) {
			var lines Lines
			b.SetBytes(int64(len(line)))
			b.ReportAllocs()
			for b.Loop() {
				lines.Next(m, line, false)
			}
		})
	}
	m, _ := New(nil, mustParse(b, `ghp_[A-Za-z0-9]{36}`))
	b.Run("patterns=1", func(b *testing.B) {
		var lines Lines
		b.SetBytes(int64(len(line)))
		for b.Loop() {
			lines.Next(m, line, false)
		}
	})
}
