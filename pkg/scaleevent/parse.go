package scaleevent

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Parse reads the fields of the stream entry with the given ID. The error is an
// [*Error] about the first fault in the order of the contract, so that the same
// entry always fails with the same words.
//
// An empty value counts as an absent field. On a scale-down, task_id, pool,
// pod_count and target_replicas may not be empty, because each of them, left out,
// widens what is removed: an unset variable in a producer must not do that.
//
// With an empty ID, which is how a producer checks an event before it has one,
// nothing is filled in for an absent task.
//
// Values are strings, also where their type is any, as in a map of go-redis.
func Parse[V string | any](id string, fields map[string]V) (Event, error) {
	p := &parser{}
	for name, value := range fields {
		p.read(name, textOf(value))
	}
	p.checkSizes()

	e := Event{ID: id}
	e.Type = p.eventType()
	p.scaleDown = e.Type == ScaleDown
	e.TaskID = p.printable(FieldTaskID)
	e.Pool = p.pool()
	e.PodCount = p.number(FieldPodCount, 1, MaxPodCount)
	e.TargetReplicas = p.number(FieldTargetReplicas, 0, MaxTargetReplicas)
	if priority := p.number(FieldPriority, 0, MaxPriority); priority != nil {
		e.Priority = *priority
	}
	e.ExpiresAt = p.expiresAt()
	e.IdempotencyKey = p.printable(FieldIdempotencyKey)
	e.Repository = p.text(FieldRepository, MaxOriginBytes)
	e.CommitSHA = p.text(FieldCommitSHA, MaxOriginBytes)
	e.TriggeredBy = p.text(FieldTriggeredBy, MaxOriginBytes)
	e.Reason = p.text(FieldReason, MaxOriginBytes)
	e.Timestamp = p.text(FieldTimestamp, MaxOriginBytes)
	e.Image = p.image()
	e.Command = p.command()
	e.CPU = p.quantity(FieldCPU)
	e.Memory = p.quantity(FieldMemory)
	e.Traceparent = p.traceparent()
	e.Env, e.Metadata = p.others()
	p.checkScope(e)
	if p.err != nil {
		return Event{}, p.err
	}

	if e.Type == ScaleUp && e.TargetReplicas == nil {
		if e.PodCount == nil {
			one := 1
			e.PodCount = &one
		}
		if e.TaskID == "" {
			e.TaskID = id
		}
	}
	return e, nil
}

// A parser reads one entry. It keeps the first fault; what it returns after that
// is of no use, and harmless.
type parser struct {
	known     [len(contractFields)]field // of the contract: few, and quicker to find than in a map
	n         int                        // how many of them are there
	unknown   []field                    // or env.NAME
	tooLarge  []field
	scaleDown bool
	err       *Error
}

type field struct{ name, value string }

func textOf[V string | any](value V) string {
	s, _ := any(value).(string) // Redis has no other values
	return s
}

func (p *parser) read(name, value string) {
	f := field{name, value}
	if len(value) > MaxFieldBytes {
		p.tooLarge = append(p.tooLarge, f)
	}
	if inContract(name) {
		p.known[p.n] = f
		p.n++
	} else {
		p.unknown = append(p.unknown, f)
	}
}

func byName(a, b field) int { return strings.Compare(a.name, b.name) }

// sent returns the value of a field of the contract, and whether it is there.
func (p *parser) sent(name string) (value string, present bool) {
	for i := range p.known[:p.n] {
		if p.known[i].name == name {
			return p.known[i].value, true
		}
	}
	return "", false
}

func (p *parser) fail(reason, field, format string, args ...any) {
	if p.err == nil {
		p.err = &Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...)}
	}
}

// checkSizes comes first, so that no later step has to look at a huge value.
func (p *parser) checkSizes() {
	slices.SortFunc(p.tooLarge, byName) // the first of them is told
	for _, f := range p.tooLarge {
		shown := f.name
		if len(shown) > MaxMetadataNameBytes {
			shown = shown[:MaxMetadataNameBytes]
		}
		p.fail(ReasonFieldTooLarge, shown, "field %s has %d bytes, more than the %d that a field may have: send a reference to the data instead",
			quote(f.name), len(f.value), MaxFieldBytes)
	}
}

// get returns the value of a field and the name under which it was sent: its own
// or its alias.
func (p *parser) get(field string) (name, value string) {
	name = field
	value, present := p.sent(field)
	if alias := aliasOf(field); alias != "" {
		other, aliasPresent := p.sent(alias)
		switch {
		case !aliasPresent:
		case value == "":
			name, value, present = alias, other, true
		case other != "" && value != other:
			p.fail(ReasonConflictingFields, alias, "%s is %s but its alias %s is %s: send one of the two", field, quote(value), alias, quote(other))
		}
	}
	if value == "" && present && p.scaleDown {
		p.checkEmpty(name, field)
	}
	return name, value
}

// checkEmpty refuses an empty field that, left out, would widen a scale-down.
func (p *parser) checkEmpty(name, field string) {
	switch field {
	case FieldTaskID, FieldPool, FieldPodCount, FieldTargetReplicas:
		p.fail(ReasonInvalidField, name, "%s is empty, and a scale_down without it may remove more than was meant: give a value, or leave the field out", name)
	}
}

func (p *parser) eventType() Type {
	name, value := p.get(FieldType)
	switch Type(value) {
	case ScaleUp, ScaleDown:
		return Type(value)
	case "":
		p.fail(ReasonMissingField, name, "field type is missing: send type=scale_up or type=scale_down")
	default:
		p.fail(ReasonUnknownType, name, "type %s is unknown: send scale_up or scale_down", quote(value))
	}
	return ""
}

// printable reads a name that people choose freely but have to be able to read.
func (p *parser) printable(field string) string {
	name, value := p.get(field)
	if len(value) > MaxNameBytes {
		p.fail(ReasonFieldTooLarge, name, "%s has %d bytes, more than the %d that it may have: send a shorter one", name, len(value), MaxNameBytes)
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) }) {
		p.fail(ReasonInvalidField, name, "%s is %s: it must be UTF-8 text without line breaks and control characters", name, quote(value))
	}
	return value
}

var poolName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (p *parser) pool() string {
	name, value := p.get(FieldPool)
	if value == "" {
		return DefaultPool
	}
	if !poolName.MatchString(value) {
		p.fail(ReasonInvalidField, name, "%s is %s: a pool's name has 1 to 63 lower-case letters, digits and dashes, and begins and ends with a letter or digit", name, quote(value))
	}
	return value
}

func (p *parser) number(field string, least, most int) *int {
	name, value := p.get(field)
	if value == "" {
		return nil
	}
	n, ok := parseInt(value)
	if !ok || n < int64(least) || n > int64(most) {
		p.fail(ReasonInvalidField, name, "%s is %s: it must be a whole number from %d to %d", name, quote(value), least, most)
		return nil
	}
	small := int(n)
	return &small
}

// parseInt reads decimal digits and nothing else: no sign, spaces or underscores.
func parseInt(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && s[0] != '+' && s[0] != '-'
}

// lastSecond is the end of the year 9999, the last that RFC 3339 can write.
const lastSecond = 253402300799

func (p *parser) expiresAt() time.Time {
	name, value := p.get(FieldExpiresAt)
	if value == "" {
		return time.Time{}
	}
	if seconds, ok := parseInt(value); ok {
		if seconds < 1 || seconds > lastSecond {
			p.fail(ReasonInvalidField, name, "%s is %s: as a number it counts seconds (not milliseconds) since 1970", name, quote(value))
			return time.Time{}
		}
		return time.Unix(seconds, 0).UTC()
	}
	t, err := time.Parse(time.RFC3339, value)
	// Year 0 and zones that lead out of the years 0000 to 9999 could not be written again.
	if utc := t.UTC(); err == nil && utc.Year() >= 1 && utc.Year() <= 9999 && !utc.IsZero() {
		return utc
	}
	p.fail(ReasonInvalidField, name, "%s is %s: it must be a time such as 2026-11-22T21:00:00Z (RFC 3339) or seconds since 1970", name, quote(value))
	return time.Time{}
}

// text reads a value that becomes an annotation or a variable of the worker, which
// may hold neither invalid UTF-8 nor a zero byte.
func (p *parser) text(field string, most int) string {
	name, value := p.get(field)
	if len(value) > most {
		p.fail(ReasonFieldTooLarge, name, "%s has %d bytes, more than the %d that it may have: send a shorter one", name, len(value), most)
	}
	p.checkText(name, value)
	return value
}

func (p *parser) checkText(name, value string) {
	if !isText(value) {
		p.fail(ReasonInvalidField, name, "%s must be UTF-8 text without zero bytes: encode binary data, for example as base64", name)
	}
}

func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

var imageName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@-]*$`)

func (p *parser) image() string {
	name, value := p.get(FieldImage)
	switch {
	case value == "":
	case len(value) > MaxImageBytes:
		p.fail(ReasonFieldTooLarge, name, "%s has %d bytes, more than the %d that it may have", name, len(value), MaxImageBytes)
	case !imageName.MatchString(value):
		p.fail(ReasonInvalidField, name, "%s is %s: it must be an image reference such as registry.example/agents/go:1.2", name, quote(value))
	}
	return value
}

// command reads a JSON array of strings, or words split at white space. What
// begins with a bracket is JSON, so that a slip in it is not taken for words.
func (p *parser) command() []string {
	name, value := p.get(FieldCommand)
	if value == "" {
		return nil
	}
	p.checkText(name, value)
	words := strings.Fields(value)
	if trimmed := strings.TrimSpace(value); strings.HasPrefix(trimmed, "[") {
		words = nil
		if err := json.Unmarshal([]byte(trimmed), &words); err != nil {
			p.fail(ReasonInvalidField, name, `%s begins with a bracket but is no JSON array of strings: send one such as ["sh","-c","make"], or words separated by blanks`, name)
			return nil
		}
	}
	switch {
	case len(words) == 0 || words[0] == "":
		p.fail(ReasonInvalidField, name, "%s names no program: give one, or leave the field out", name)
	case slices.ContainsFunc(words, func(w string) bool { return !isText(w) }):
		p.fail(ReasonInvalidField, name, "%s has a word with a zero byte, which no program can be given", name)
	case len(encodeCommand(words)) > MaxFieldBytes: // it travels as JSON from here
		p.fail(ReasonFieldTooLarge, name, "%s has more than %d bytes when it is written as JSON: put it in a script of the image", name, MaxFieldBytes)
	}
	return words
}

var quantity = regexp.MustCompile(`^([0-9]{1,18}(\.[0-9]{0,9})?|\.[0-9]{1,9})([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?$`)

func (p *parser) quantity(field string) string {
	name, value := p.get(field)
	if value == "" {
		return ""
	}
	digits, _, _ := strings.Cut(strings.ToLower(value), "e")
	if !quantity.MatchString(value) || !strings.ContainsAny(digits, "123456789") {
		p.fail(ReasonInvalidField, name, "%s is %s: it must be a Kubernetes quantity above zero, such as 500m, 2 or 512Mi", name, quote(value))
	}
	return value
}

var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?$`)

// traceparent drops what is invalid, as the W3C recommendation says: a broken
// trace must not break the work that it traces.
func (p *parser) traceparent() string {
	_, value := p.get(FieldTraceparent)
	if value == "" || len(value) > 512 || !traceparent.MatchString(value) {
		return ""
	}
	version, traceID, parentID := value[:2], value[3:35], value[36:52]
	if version == "ff" || (version == "00" && len(value) != 55) ||
		strings.Trim(traceID, "0") == "" || strings.Trim(parentID, "0") == "" {
		return ""
	}
	return value
}

var (
	envName      = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	metadataName = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
)

// others reads env.NAME and the fields that the contract does not know.
func (p *parser) others() (env, metadata map[string]string) {
	size := 0
	slices.SortFunc(p.unknown, byName) // the first fault is told
	for _, f := range p.unknown {
		if name, isEnv := strings.CutPrefix(f.name, envPrefix); isEnv {
			p.checkEnv(name, f.value)
			env = put(env, name, f.value)
			continue
		}
		p.checkMetadata(f.name, f.value)
		metadata = put(metadata, f.name, f.value)
		size += len(f.name) + len(f.value)
	}
	if len(env) > MaxEnv {
		p.fail(ReasonEventTooLarge, "", "the event has %d env fields, more than %d", len(env), MaxEnv)
	}
	if len(metadata) > MaxMetadata {
		p.fail(ReasonEventTooLarge, "", "the event has %d fields that the contract does not know, more than %d", len(metadata), MaxMetadata)
	}
	if size > MaxMetadataBytes {
		p.fail(ReasonEventTooLarge, "", "fields that the contract does not know have %d bytes together, more than %d: send a reference to the data instead", size, MaxMetadataBytes)
	}
	return env, metadata
}

func put(m map[string]string, name, value string) map[string]string {
	if m == nil {
		m = make(map[string]string)
	}
	m[name] = value
	return m
}

func (p *parser) checkEnv(name, value string) {
	field := envPrefix + name
	switch {
	case len(name) > MaxNameBytes:
		p.fail(ReasonInvalidField, envPrefix+name[:MaxMetadataNameBytes], "field %s has a name of %d bytes, more than the %d that a variable's name may have", quote(field), len(name), MaxNameBytes)
	case !envName.MatchString(name):
		p.fail(ReasonInvalidField, field, "field %s does not name an environment variable: use letters, digits and underscores, and no digit first", quote(field))
	case reservedEnv[name] || strings.HasPrefix(name, "OTTO_META_"):
		p.fail(ReasonInvalidField, field, "field %s names a variable that Ottoscaler sets itself: choose another name", quote(field))
	}
	p.checkText(field, value)
}

func (p *parser) checkMetadata(name, value string) {
	switch {
	case len(name) > MaxMetadataNameBytes:
		p.fail(ReasonInvalidField, name[:MaxMetadataNameBytes], "field %s has a name of %d bytes, more than the %d that a name may have", quote(name), len(name), MaxMetadataNameBytes)
	case !metadataName.MatchString(name):
		p.fail(ReasonInvalidField, name, "field %s becomes an annotation: its name must be made of letters, digits, dashes, underscores and dots, and begin and end with a letter or digit", quote(name))
	}
	p.checkText(name, value)
}

// checkScope looks at the fields together.
func (p *parser) checkScope(e Event) {
	if e.PodCount != nil && e.TargetReplicas != nil {
		p.fail(ReasonConflictingFields, FieldTargetReplicas, "pod_count (a change) and target_replicas (a total) exclude each other: send one of the two")
	}
	if e.Type == ScaleDown && e.TaskID == "" && e.PodCount == nil && e.TargetReplicas == nil {
		p.fail(ReasonMissingField, FieldTaskID, "a scale_down needs task_id, pod_count or target_replicas: without any of them it would remove the whole pool; to mean that, send target_replicas=0")
	}
}
