package podimages

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/ottoscaler/ottoscaler/test/cluster/image"
)

// iptablesLayer takes iptables out of a root file system: the program with its
// names and extensions, and the libraries that they are linked against.
func iptablesLayer(root string) (image.Layer, error) {
	const program = "usr/sbin/xtables-nft-multi"
	layer := image.Layer{{Path: "sbin", Link: "usr/sbin"}, {Path: "lib", Link: "usr/lib"}, {Path: program, Source: filepath.Join(root, program)}}
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		layer = append(layer, image.File{Path: "usr/sbin/" + name, Link: "xtables-nft-multi"})
	}
	extensions, err := filepath.Glob(filepath.Join(root, "usr/lib/*/xtables/*.so"))
	if err != nil {
		return nil, err
	}
	if len(extensions) == 0 {
		return nil, fmt.Errorf("%s has no extensions of iptables: %w", root, fs.ErrNotExist)
	}
	needed := map[string]string{} // by path in the image
	for _, file := range append([]string{filepath.Join(root, program)}, extensions...) {
		if err := libraries(root, file, needed); err != nil {
			return nil, err
		}
	}
	for _, extension := range extensions {
		real, err := filepath.EvalSymlinks(extension) // several names have the same content
		if err != nil {
			return nil, err
		}
		layer = append(layer, image.File{Path: within(root, extension), Source: real})
	}
	for _, path := range slices.Sorted(maps.Keys(needed)) {
		layer = append(layer, image.File{Path: path, Source: needed[path]})
	}
	return layer, nil
}

func within(root, file string) string {
	path, err := filepath.Rel(root, file)
	if err != nil {
		return file // both are absolute, or neither is
	}
	return path
}

// libraries adds what a program or a library is linked against, and its loader.
func libraries(root, file string, needed map[string]string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("reading what %s is linked against: %w", file, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	names, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading what %s is linked against: %w", file, err)
	}
	for _, name := range names {
		path, source, err := find(root, name)
		if err != nil {
			return fmt.Errorf("finding what %s is linked against: %w", file, err)
		}
		if needed[path] != "" {
			continue
		}
		needed[path] = source
		if err := libraries(root, source, needed); err != nil {
			return err
		}
	}
	for _, section := range f.Progs {
		if section.Type != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, section.Filesz-1) // it ends with a zero
		if _, err := section.ReadAt(loader, 0); err != nil {
			return fmt.Errorf("reading the loader of %s: %w", file, err)
		}
		_, source, err := find(root, filepath.Base(string(loader)))
		if err != nil {
			return err
		}
		needed[string(loader[1:])] = source
	}
	return nil
}

// find looks for a library where Debian has them.
func find(root, name string) (path, source string, err error) {
	for _, dir := range []string{"usr/lib/*-linux-gnu*", "usr/lib", "lib/*-linux-gnu*", "lib", "lib64", "usr/lib64"} {
		found, err := filepath.Glob(filepath.Join(root, dir, name))
		if err != nil {
			return "", "", err
		}
		for _, file := range found {
			if real, err := filepath.EvalSymlinks(file); err == nil {
				if _, err := os.Stat(real); err == nil {
					return within(root, file), real, nil
				}
			}
		}
	}
	return "", "", fmt.Errorf("%s: %w", name, errors.Join(fs.ErrNotExist))
}
