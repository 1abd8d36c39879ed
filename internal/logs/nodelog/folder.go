package nodelog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// mostListing bounds a listing, in bytes: some thousand files.
const mostListing = 1 << 20

// A folder is what a node has of one instance's log.
type folder struct {
	// rotated are the files that it has put away, by the names that they had before they
	// were compressed, from the oldest. The names end with the time, in the node's own
	// zone and in whole seconds.
	rotated []string
	// packed says which of them are compressed.
	packed map[string]bool
	// current is whether the file that is written to is there.
	current bool
}

// sameFiles reports whether two listings show the same files, compressed or not.
func (f folder) sameFiles(other folder) bool {
	return f.current == other.current && slices.Equal(f.rotated, other.rotated)
}

// list reads which files the node has.
func (c *Client) list(ctx context.Context, log Log) (folder, error) {
	response, err := c.get(ctx, log, "")
	if err != nil {
		return folder{}, err
	}
	defer response.Body.Close() //nolint:errcheck // it is only read
	names, err := links(io.LimitReader(response.Body, mostListing))
	if err != nil {
		return folder{}, fmt.Errorf("reading the list of log files: %w", err)
	}
	return folderOf(names, log.current()), nil
}

// folderOf finds the files of one instance among those of all runs of its container.
func folderOf(names []string, current string) folder {
	f := folder{packed: map[string]bool{}}
	for _, name := range names {
		if name == current {
			f.current = true
			continue
		}
		// A kubelet compresses into a file that ends with .tmp, gives it its name when it is
		// whole, and then removes the original: for a moment both are there.
		name, packed := strings.CutSuffix(name, ".gz")
		suffix, ours := strings.CutPrefix(name, current+".")
		if !ours || !isTime(suffix) {
			continue
		}
		f.packed[name] = f.packed[name] || packed
		if !slices.Contains(f.rotated, name) {
			f.rotated = append(f.rotated, name)
		}
	}
	slices.Sort(f.rotated)
	return f
}

// isTime reports whether a text looks like 20060102-150405.
func isTime(suffix string) bool {
	date, clock, ok := strings.Cut(suffix, "-")
	if !ok || len(date) != 8 || len(clock) != 6 {
		return false
	}
	_, dateErr := strconv.ParseUint(date, 10, 32)
	_, clockErr := strconv.ParseUint(clock, 10, 32)
	return cmp.Or(dateErr, clockErr) == nil
}

// links returns where the links of a page lead to, as [http.FileServer] lists a folder.
func links(page io.Reader) ([]string, error) {
	var names []string
	for tokens := html.NewTokenizer(page); ; {
		switch tokens.Next() {
		case html.ErrorToken:
			if err := tokens.Err(); !errors.Is(err, io.EOF) {
				return nil, err
			}
			return names, nil
		case html.StartTagToken:
			token := tokens.Token()
			if token.DataAtom != atom.A {
				continue
			}
			for _, attribute := range token.Attr {
				if attribute.Key != "href" {
					continue
				}
				if link, err := url.Parse(attribute.Val); err == nil {
					names = append(names, strings.TrimPrefix(link.Path, "./"))
				}
			}
		}
	}
}

// get asks for a file of the log's folder, or for the list of them.
func (c *Client) get(ctx context.Context, log Log, name string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url(log, name), nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept-Encoding", "identity") // the bytes as they lie there
	response, err := c.HTTP.Do(request)
	if err != nil {
		return nil, refusal(err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
	response.Body.Close() //nolint:errcheck // it was only read
	return nil, answered(response.StatusCode, strings.Join(strings.Fields(string(said)), " "))
}
