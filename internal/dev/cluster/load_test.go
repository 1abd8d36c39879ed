package cluster

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// listing is what `ctr images ls` prints, cut short.
const listing = `REF                             TYPE                                       DIGEST                PLATFORMS
example.test/main:dev           application/vnd.oci.image.manifest.v1+json sha256:1111           linux/amd64
example.test/other:dev          application/vnd.oci.image.manifest.v1+json sha256:2222           linux/amd64
sha256:aaaa                     application/vnd.oci.image.manifest.v1+json sha256:1111           linux/amd64
sha256:bbbb                     application/vnd.oci.image.manifest.v1+json sha256:2222           linux/amd64
`

func index(name, hex string) v1.IndexManifest {
	return v1.IndexManifest{Manifests: []v1.Descriptor{{
		Digest: v1.Hash{Algorithm: "sha256", Hex: hex}, Annotations: map[string]string{imageName: name},
	}}}
}

func TestAnImageIsKnownByItsNameAndItsDigest(t *testing.T) {
	for _, row := range []struct {
		name, digest string
		want         bool
	}{
		{"example.test/main:dev", "1111", true},
		{"example.test/main:dev", "2222", false},
		{"example.test/main:prod", "1111", false},
	} {
		if got := known(listing, index(row.name, row.digest)); got != row.want {
			t.Errorf("%s with digest %s: got %t, want %t", row.name, row.digest, got, row.want)
		}
	}
}

func TestAnImageIsThereIfEveryNodeHasItsName(t *testing.T) {
	inventory := &Inventory{nodes: []string{"a", "b"}, has: []string{listing, strings.ReplaceAll(listing, "other:dev", "other:prod")}}
	for name, want := range map[string]bool{"example.test/main:dev": true, "example.test/other:dev": false, "example.test/main:de": false} {
		if got := inventory.Has(name); got != want {
			t.Errorf("%s: got %t, want %t", name, got, want)
		}
	}
}

func TestOnlyImagesThatNoNameIsKeptOfAreForgotten(t *testing.T) {
	const listing = `REF                         TYPE                                       DIGEST      PLATFORMS
example.test/main:dev       application/vnd.oci.image.manifest.v1+json sha256:3333 linux/amd64
example.test/main:dev-3333  application/vnd.oci.image.manifest.v1+json sha256:3333 linux/amd64
example.test/main:dev-2222  application/vnd.oci.image.manifest.v1+json sha256:2222 linux/amd64
example.test/main:dev-1111  application/vnd.oci.image.manifest.v1+json sha256:1111 linux/amd64
example.test/mainly:dev     application/vnd.oci.image.manifest.v1+json sha256:4444 linux/amd64
sha256:cccc                 application/vnd.oci.image.manifest.v1+json sha256:3333 linux/amd64
sha256:bbbb                 application/vnd.oci.image.manifest.v1+json sha256:2222 linux/amd64
sha256:aaaa                 application/vnd.oci.image.manifest.v1+json sha256:1111 linux/amd64
sha256:dddd                 application/vnd.oci.image.manifest.v1+json sha256:4444 linux/amd64
`
	for _, row := range []struct {
		what string
		keep []string
		want []string
	}{
		{
			"one that a container still runs",
			[]string{"example.test/main:dev", "example.test/main:dev-3333", "example.test/main:dev-2222"},
			[]string{"example.test/main:dev-1111", "sha256:aaaa"},
		},
		{
			"the newest alone",
			[]string{"example.test/main:dev"},
			[]string{"example.test/main:dev-3333", "example.test/main:dev-2222", "example.test/main:dev-1111", "sha256:bbbb", "sha256:aaaa"},
		},
		{"all", []string{"example.test/main:dev", "example.test/main:dev-3333", "example.test/main:dev-2222", "example.test/main:dev-1111"}, nil},
	} {
		if got := former(listing, "example.test/main", row.keep); !slices.Equal(got, row.want) {
			t.Errorf("keeping %s: got %v, want %v", row.what, got, row.want)
		}
	}
}

func TestOnlyLargeBlobsThatTheNodeHasAreLeftOut(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(f)
	for name, size := range map[string]int{
		"index.json": 10, "blobs/sha256/manifest": 100, "blobs/sha256/there": 2 * smallBlob, "blobs/sha256/new": 2 * smallBlob,
	} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(size), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	var sent []string
	has := "there\nmanifest\n"
	err = send(t.Context(), archive, func(blob string) bool { return strings.Contains(has, blob) }, func(r io.Reader) error {
		tr := tar.NewReader(r)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			sent = append(sent, h.Name)
		}
	})
	slices.Sort(sent)
	if want := []string{"blobs/sha256/manifest", "blobs/sha256/new", "index.json"}; err != nil || !slices.Equal(sent, want) {
		t.Errorf("got %v, %v, want %v", sent, err, want)
	}
}
