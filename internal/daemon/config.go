package daemon

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// Load fills the struct that cfg points to from the environment, as [Main] does, and
// returns every problem that it finds.
func Load[C Config](cfg *C) error { return errors.Join(load(cfg)...) }

// load is Load.
//
// It adds three things to envconfig, which stops at the first problem. A
// variable that is set but empty counts as not set, because that is what a
// chart renders for a value that nobody gave. A field tagged secret:"true" may
// come from the file that NAME_FILE names. And each field is reported by itself.
func load[C Config](cfg *C) []error {
	l := &loader{}
	l.fill(reflect.ValueOf(cfg).Elem())
	if err := (*cfg).LogSettings().validate(); err != nil {
		l.addUnlessKnown(err)
	}
	for _, err := range flatten((*cfg).Validate()) {
		l.addUnlessKnown(err)
	}
	return l.problems
}

type loader struct {
	problems []error
	wrong    []string // the variables that have a problem
}

func (l *loader) add(name string, err error) {
	l.problems = append(l.problems, err)
	l.wrong = append(l.wrong, name)
}

// addUnlessKnown leaves out what Validate says about a variable that could not
// even be read: it saw a zero there.
func (l *loader) addUnlessKnown(err error) {
	first, _, _ := strings.Cut(err.Error(), " ")
	if !slices.Contains(l.wrong, strings.TrimRight(first, ":,")) {
		l.problems = append(l.problems, err)
	}
}

func (l *loader) fill(s reflect.Value) {
	for i := range s.NumField() {
		field := s.Type().Field(i)
		switch {
		case field.Anonymous && field.Type.Kind() == reflect.Struct:
			l.fill(s.Field(i))
		case field.IsExported() && field.Tag.Get("ignored") != "true":
			l.fillField(field, s.Field(i))
		}
	}
}

// fillField lets envconfig fill a struct of this one field, so that a problem
// with one field does not hide the others.
func (l *loader) fillField(field reflect.StructField, value reflect.Value) {
	single := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: field.Name, Type: field.Type, Tag: field.Tag},
	}))
	name, err := variableName(single.Interface())
	if err != nil {
		l.add(field.Name, err)
		return
	}
	if text, set := os.LookupEnv(name); set && text == "" {
		if err := os.Unsetenv(name); err != nil {
			l.add(name, fmt.Errorf("%s: %w", name, err))
			return
		}
	}
	secret := field.Tag.Get("secret") == "true"
	if file := os.Getenv(name + "_FILE"); secret && file != "" {
		l.fillSecret(name, file, value)
		return
	}
	if _, set := os.LookupEnv(name); !set && field.Tag.Get("required") == "true" && field.Tag.Get("default") == "" {
		l.add(name, fmt.Errorf("%s is required: %s", name, description(field)))
		return
	}
	if err := envconfig.Process("", single.Interface()); err != nil {
		l.add(name, explain(name, secret, err))
		return
	}
	value.Set(single.Elem().Field(0))
}

// fillSecret reads a secret as Kubernetes and Docker mount them: a file whose
// last line end does not belong to the secret.
func (l *loader) fillSecret(name, file string, value reflect.Value) {
	if os.Getenv(name) != "" {
		l.add(name, fmt.Errorf("%s and %s_FILE are both set: set one of them", name, name))
		return
	}
	if value.Kind() != reflect.String {
		l.add(name, fmt.Errorf("%s_FILE: a secret of type %s cannot be read from a file", name, value.Type()))
		return
	}
	text, err := os.ReadFile(file) //nolint:gosec // naming the file is what the variable is for
	if err != nil {
		l.add(name, fmt.Errorf("%s_FILE: %w", name, err))
		return
	}
	value.SetString(strings.TrimSpace(string(text)))
}

// variableName asks envconfig for the name that it derives.
func variableName(spec any) (string, error) {
	var name strings.Builder
	if err := envconfig.Usagef("", spec, &name, `{{range .}}{{usage_key .}}{{end}}`); err != nil {
		return "", fmt.Errorf("deriving a variable's name: %w", err)
	}
	return name.String(), nil
}

func description(field reflect.StructField) string {
	if desc := field.Tag.Get("desc"); desc != "" {
		return desc
	}
	return "it has no default"
}

// explain says in a user's words what envconfig says in Go's.
func explain(name string, secret bool, err error) error {
	parse, ok := errors.AsType[*envconfig.ParseError](err)
	if !ok {
		return fmt.Errorf("%s: %w", name, err)
	}
	value := strconv.Quote(parse.Value)
	if secret {
		value = "its value"
	}
	reason := parse.Err
	if number, ok := errors.AsType[*strconv.NumError](parse.Err); ok {
		reason = number.Err
	}
	switch parse.TypeName {
	case reflect.TypeFor[time.Duration]().String():
		return fmt.Errorf("%s: %s is not a duration such as 90s or 1m30s", name, value)
	case reflect.TypeFor[slog.Level]().String():
		return fmt.Errorf("%s: %s is not one of debug, info, warn and error", name, value)
	case "int", "int32", "int64", "uint", "uint32", "uint64", "uint16":
		return fmt.Errorf("%s: %s is not a whole number in range (%w)", name, value, reason)
	case "bool":
		return fmt.Errorf("%s: %s is neither true nor false", name, value)
	default:
		return fmt.Errorf("%s: %s is not valid: %w", name, value, reason)
	}
}

// flatten takes an errors.Join apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error }) // only the outermost one is a list of problems
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

const usageFormat = `This program is configured by environment variables. It takes no arguments.
A variable that is set but empty counts as not set.

VARIABLE	TYPE	DEFAULT	REQUIRED	DESCRIPTION
{{range .}}{{usage_key .}}	{{usage_type .}}	{{usage_default .}}	{{if usage_required .}}yes{{end}}	{{usage_description .}}
{{if eq (.Tags.Get "secret") "true"}}{{usage_key .}}_FILE	Path			a file that holds {{usage_key .}}, instead of the variable
{{end}}{{end}}
Exit codes: 0 told to stop, 1 failed, 2 misconfigured.
`

func printUsage(w io.Writer, spec any) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if err := envconfig.Usagef("", spec, table, usageFormat); err != nil {
		return fmt.Errorf("describing the variables: %w", err)
	}
	return table.Flush()
}
