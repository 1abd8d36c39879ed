package pod

import (
	"crypto/sha256"
	"encoding/base32"
	"regexp"
	"strconv"
	"strings"
)

const (
	// maxPrefix keeps a name within the 63 bytes that a host name may have, for
	// an index of up to nine digits, and the number of an attempt of up to four.
	maxPrefix  = 34
	hashLength = 12
	// maxLabelValue is Kubernetes' limit.
	maxLabelValue = 63
)

// lowerBase32 has only characters that a DNS label may have.
var lowerBase32 = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// Name returns the name of a worker: the same for the same arguments, whoever
// asks and how often, so that a repeated create meets the pod of the first one.
//
// Origin is what the worker exists for: the idempotency key of its event or,
// without one, the event's ID. The instance is hashed with it because two
// installations in one namespace read two streams, whose entry IDs may coincide.
func Name(instance, pool, origin string, index int) string {
	prefix := pool
	if len(prefix) > maxPrefix {
		prefix = strings.TrimRight(prefix[:maxPrefix], "-")
	}
	return prefix + "-" + hash(instance, origin) + "-" + strconv.Itoa(index)
}

// LeaderLease returns the name of the Lease by which one scaler of an installation
// leads the others.
func LeaderLease(instance string) string {
	if len(instance) > maxLabelValue || !validHostName.MatchString(instance) {
		instance = "hash-" + hash(instance)
	}
	return instance + "-scaler"
}

var validHostName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

var validLabelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`)

// LabelValue returns s, or a hash of it where s is no valid label value.
func LabelValue(s string) string {
	if len(s) <= maxLabelValue && validLabelValue.MatchString(s) {
		return s
	}
	return "hash-" + hash(s)
}

// hash is short, and long enough: with 60 bits, one in a million installations
// that hold a million workers each sees a collision. It is then a name conflict,
// which is noticed and reported.
func hash(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return lowerBase32.EncodeToString(sum[:])[:hashLength]
}
