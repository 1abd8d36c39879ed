package main

import (
	"strings"
	"testing"
)

// The chaos rows are only worth what their judge is.
func TestWhatIsWrongWithALogIsCounted(t *testing.T) {
	for _, row := range []struct {
		what, log string
		want      LogRow
	}{
		{"all is there", "1 2 3 4", LogRow{}},
		{"one is missing", "1 3 4", LogRow{Lost: 1}},
		{"the end is missing", "1 2", LogRow{Lost: 2}},
		{"the beginning is missing", "3 4", LogRow{Lost: 2}},
		{"a gap tells of it", "1 - 4", LogRow{Marked: 2}},
		{"a gap at the end", "1 2 3 -", LogRow{Marked: 1}},
		{"a gap excuses one place only", "1 - 3", LogRow{Marked: 1, Lost: 1}},
		{"a line that a gap has cut", "1 - torn 4", LogRow{Marked: 2}},
		{"a line at the end that a gap has cut", "1 2 - torn4", LogRow{Marked: 2}},
		{"a gap of nothing", "1 2 - 3 4", LogRow{}},
		{"one is there twice", "1 2 2 3 4", LogRow{Repeated: 1}},
		{"one is late behind a gap", "1 - 3 2 4", LogRow{Reordered: 1}},
		{"one is late", "1 3 2 4", LogRow{Reordered: 1}},
		{"all is sent twice", "1 2 3 4 1 2 3 4", LogRow{Repeated: 4}},
	} {
		var log strings.Builder
		for _, word := range strings.Fields(row.log) {
			switch word {
			case "-":
			case "torn":
				log.WriteString("ne 3")
			case "torn4":
				log.WriteString("ne 4")
			default:
				log.WriteString("w line " + word)
			}
			log.WriteByte('\n')
		}
		var got LogRow
		if err := judgeLines(&got, strings.NewReader(log.String()), "w", 4); err != nil {
			t.Errorf("%s: %v", row.what, err)
		}
		if got != row.want {
			t.Errorf("%s: got %+v, want %+v", row.what, got, row.want)
		}
	}
	for _, strange := range []string{"w line 5\n", "w line x\n", "v line 1\n", "ne 3\n", "\nne 9\n", "\nne 3\n", "\nne 3\nne 4\n", "\nne 2\nw line 4\n", "w line 1\n\nne 1\nw line 2\n"} {
		if err := judgeLines(new(LogRow), strings.NewReader(strange), "w", 4); err == nil {
			t.Errorf("%q: want an error", strange)
		}
	}
}
