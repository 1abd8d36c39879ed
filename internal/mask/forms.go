package mask

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/url"
	"strings"
)

// minEncoded is the length of the shortest encoded form that is hidden: a few
// letters of base64 may be anything.
const minEncoded = 8

// addForms adds what is to be hidden of a value, and reports whether that is all of it.
func addForms(all map[string]struct{}, value string) (whole bool) {
	whole = true
	value = strings.TrimRight(value, "\r\n")
	lines := strings.Split(value, "\n")
	for _, line := range lines {
		// How it is indented or ended may differ where it is printed.
		line = strings.TrimSpace(line)
		if len(line) < MinLength {
			whole = whole && line == ""
			continue
		}
		add(all, line)
		addEscaped(all, line)
	}
	if len(strings.TrimSpace(value)) < MinLength {
		return whole
	}
	if len(lines) > 1 {
		addEscaped(all, value)
	}
	addBase64(all, value)
	addBase64(all, value+"\n") // as a file usually ends
	return whole
}

// add adds a form, in pieces if it is long.
func add(all map[string]struct{}, form string) {
	for len(form) > maxForm {
		// The last piece must not be too short to be found.
		n := min(maxForm, len(form)-MinLength)
		all[form[:n]] = struct{}{}
		form = form[n:]
	}
	if len(form) >= MinLength && !strings.Contains(form, "\n") {
		all[form] = struct{}{}
	}
}

// addEscaped adds a text as it is in a URL and in JSON, each as is usual.
func addEscaped(all map[string]struct{}, text string) {
	query := url.QueryEscape(text)
	add(all, query)
	add(all, strings.ReplaceAll(query, "+", "%20")) // as JavaScript does; a plus is %2B
	add(all, url.PathEscape(text))
	for _, forHTML := range []bool{true, false} {
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(forHTML)
		if encoder.Encode(text) == nil { // a string that is no UTF-8 is mended, so it always is
			add(all, strings.Trim(strings.TrimSpace(b.String()), `"`))
		}
	}
}

// addBase64 adds a text as it is in base64: alone, and within a longer text, where
// it may begin at any of three places within a group of four characters. Of the
// characters at its ends that its neighbours have a part in, nothing can be said.
func addBase64(all map[string]struct{}, text string) {
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		alone := encoding.EncodeToString([]byte(text))
		addEncoded(all, alone)
		addEncoded(all, strings.TrimRight(alone, "="))
		for _, width := range []int{64, 76} {
			for rest := alone; len(alone) > width && rest != ""; {
				n := min(width, len(rest))
				addEncoded(all, rest[:n])
				rest = rest[n:]
			}
		}
		for before, mixed := range []int{0, 2, 3} {
			shifted := encoding.WithPadding(base64.NoPadding).EncodeToString([]byte("\x00\x00"[:before] + text))
			if (before+len(text))%3 != 0 {
				shifted = shifted[:len(shifted)-1]
			}
			addEncoded(all, shifted[mixed:])
		}
	}
}

func addEncoded(all map[string]struct{}, form string) {
	if len(form) >= minEncoded {
		add(all, form)
	}
}
