package pod

import (
	"cmp"
	"slices"
	"strings"
)

// A SecretRef is what a worker uses of a Secret.
type SecretRef struct {
	// Name of the Secret, in the worker's namespace.
	Name string
	// Key is the key of the value that is used; "" for all.
	Key string
}

// FormatSecrets writes references as the value of [AnnotationMaskSecrets]: each once, in order.
func FormatSecrets(refs []SecretRef) string {
	refs = slices.Clone(refs)
	slices.SortFunc(refs, func(a, b SecretRef) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Key, b.Key)) })
	var all []string
	for i, ref := range refs {
		switch first := slices.IndexFunc(refs, func(r SecretRef) bool { return r.Name == ref.Name }); {
		case i > 0 && refs[i-1] == ref, i != first && refs[first].Key == "": // said, or part of what is said
		case ref.Key == "":
			all = append(all, ref.Name)
		default:
			all = append(all, ref.Name+"/"+ref.Key)
		}
	}
	return strings.Join(all, ",")
}

// ParseSecrets reads what [FormatSecrets] writes.
func ParseSecrets(value string) []SecretRef {
	var refs []SecretRef
	for _, part := range strings.Split(value, ",") {
		if name, key, _ := strings.Cut(part, "/"); name != "" {
			refs = append(refs, SecretRef{Name: name, Key: key})
		}
	}
	return refs
}
