package environment

import (
	"fmt"
	"strings"

	"github.com/gosimple/slug"
	"golang.org/x/text/unicode/norm"
)

// maxSlug leaves room for what is put around it: the host name of a kind node,
// "ottoscaler-<slug>-control-plane", may have 63 characters (RFC 1123).
const maxSlug = 63 - len("ottoscaler-") - len("-control-plane")

// Slug returns the name that a user has in Kubernetes, Docker and file names:
// lower-case ASCII letters, digits and dashes. It is the same for every spelling
// of a name that looks the same (Unicode NFC). A name of which nothing is left,
// or too much, is an error.
func Slug(user string) (string, error) {
	s := strings.ReplaceAll(slug.MakeLang(norm.NFC.String(user), "en"), "_", "-")
	s = strings.Trim(s, "-")
	switch {
	case s == "":
		return "", fmt.Errorf("USER=%s: no letter or digit of it can be written in ASCII: take another name", user)
	case len(s) > maxSlug:
		return "", fmt.Errorf("USER=%s: %s has %d characters, %d are the most: take a shorter name", user, s, len(s), maxSlug)
	}
	return s, nil
}
