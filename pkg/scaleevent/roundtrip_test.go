package scaleevent_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// validEvents generates events as Parse would return them.
func validEvents() *rapid.Generator[scaleevent.Event] {
	name := rapid.OneOf(rapid.StringMatching(`[a-z]([a-z0-9-]{0,20}[a-z0-9])?`), rapid.Just("한진우 №7"))
	text := rapid.StringOfN(rapid.RuneFrom([]rune("ab \n\t\"\\&<>é한\u2028🚀[],{}=")), 0, 40, -1)
	return rapid.Custom(func(t *rapid.T) scaleevent.Event {
		e := scaleevent.Event{
			ID:             rapid.StringMatching(`[0-9]{1,13}-[0-9]{1,3}`).Draw(t, "id"),
			Type:           rapid.SampledFrom([]scaleevent.Type{scaleevent.ScaleUp, scaleevent.ScaleDown}).Draw(t, "type"),
			TaskID:         name.Draw(t, "task"),
			Pool:           rapid.StringMatching(`[a-z]([a-z0-9-]{0,20}[a-z0-9])?`).Draw(t, "pool"),
			Priority:       rapid.IntRange(0, scaleevent.MaxPriority).Draw(t, "priority"),
			IdempotencyKey: rapid.OneOf(rapid.Just(""), name).Draw(t, "key"),
			Repository:     text.Draw(t, "repository"),
			CommitSHA:      text.Draw(t, "commit"),
			TriggeredBy:    text.Draw(t, "by"),
			Reason:         text.Draw(t, "reason"),
			Timestamp:      text.Draw(t, "timestamp"),
			Image:          rapid.SampledFrom([]string{"", "a", "registry.example:5000/a/b@sha256:00"}).Draw(t, "image"),
			CPU:            rapid.SampledFrom([]string{"", "1", "500m", "0.25"}).Draw(t, "cpu"),
			Memory:         rapid.SampledFrom([]string{"", "1Gi", "1e9"}).Draw(t, "memory"),
			Traceparent:    rapid.SampledFrom([]string{"", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}).Draw(t, "trace"),
			Env:            rapid.MapOfN(rapid.StringMatching(`[A-NP-Z_][A-Za-z0-9_]{0,10}`), text, 0, 5).Draw(t, "env"),
			Metadata:       rapid.MapOfN(rapid.StringMatching(`x[A-Za-z0-9_.-]{0,10}[a-z0-9]`), text, 0, 5).Draw(t, "metadata"),
		}
		delete(e.Env, "TRACEPARENT")
		switch kind := rapid.IntRange(0, 2).Draw(t, "kind"); {
		case kind == 0:
			n := rapid.IntRange(0, scaleevent.MaxTargetReplicas).Draw(t, "target")
			e.TargetReplicas = &n
		case kind == 1 || e.Type == scaleevent.ScaleUp:
			n := rapid.IntRange(1, scaleevent.MaxPodCount).Draw(t, "count")
			e.PodCount = &n
		}
		if rapid.Bool().Draw(t, "expires") {
			e.ExpiresAt = time.Unix(rapid.Int64Range(1, 253402300799).Draw(t, "seconds"), rapid.Int64Range(0, 999_999_999).Draw(t, "nanos")).UTC()
		}
		if words := rapid.SliceOfN(text, 0, 4).Draw(t, "words"); len(words) > 0 {
			e.Command = append([]string{"sh"}, words...)
		}
		return e
	})
}

func TestEveryValidEventSurvivesItsFields(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := validEvents().Draw(t, "event")
		if err := want.Validate(); err != nil {
			t.Fatalf("a valid event is rejected: %v", err)
		}
		got, err := scaleevent.Parse(want.ID, want.Fields())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
	})
}

func TestAnEventMadeByHandIsCheckedLikeAnEntry(t *testing.T) {
	for name, e := range map[string]scaleevent.Event{
		"nothing in it":                 {},
		"metadata named like a field":   {Type: scaleevent.ScaleUp, Metadata: fields{"pool": "x"}},
		"metadata named like a alias":   {Type: scaleevent.ScaleUp, Metadata: fields{"count": "1"}},
		"metadata named like env":       {Type: scaleevent.ScaleUp, Metadata: fields{"env.A": "1"}},
		"count below the range":         {Type: scaleevent.ScaleUp, PodCount: number(0)},
		"negative priority":             {Type: scaleevent.ScaleUp, Priority: -1},
		"a command without words":       {Type: scaleevent.ScaleUp, Command: []string{}},
		"a variable without a name":     {Type: scaleevent.ScaleUp, Env: fields{"": "1"}},
		"an expiry beyond the calendar": {Type: scaleevent.ScaleUp, ExpiresAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		t.Run(name, func(t *testing.T) {
			var rejected *scaleevent.Error
			if err := e.Validate(); !errors.As(err, &rejected) {
				t.Errorf("Validate() = %v, want an *Error", err)
			}
		})
	}
}

func TestAResultSurvivesItsFields(t *testing.T) {
	want := scaleevent.Result{
		EventID: "1-0", Status: "done", Message: "made 2 workers", Type: "scale_up", TaskID: "t", Pool: "default",
		Attempts: 2, Details: fields{"workers": "a,b"},
	}
	if diff := cmp.Diff(want, scaleevent.ParseResult(want.Fields())); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	forged := scaleevent.Result{EventID: "1-0", Status: "rejected", Details: fields{"status": "done"}}
	if got := forged.Fields()["status"]; got != "rejected" {
		t.Errorf("a detail replaced the status: %q", got)
	}
}

// FuzzParse feeds entries as they may come from anywhere: pairs split at "\x1e"
// and "\x1f". What is accepted must survive its own fields, because that is how
// it travels to the scaler.
func FuzzParse(f *testing.F) {
	f.Add("type\x1fscale_up\x1epod_count\x1f3\x1eenv.A\x1fb\x1ebranch\x1fmain")
	f.Add("type\x1fscale_down\x1ejob_id\x1ft\x1eexpires_at\x1f2026-11-22T21:00:00.5+09:00")
	f.Add("type\x1fscale_up\x1ecommand\x1f[\"a\",\"\\u2028\"]\x1ecpu\x1f.5\x1ememory\x1f1e3")
	f.Add("type\x1fscale_up\x1ecommand\x1f a\x01 b \x1etraceparent\x1f00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Add("type\x1f\x1e\x1f\x1e\x1e")
	const id = "1-0" // Redis makes the IDs, so they are not the enemy
	f.Fuzz(func(t *testing.T, data string) {
		in := fields{}
		for pair := range strings.SplitSeq(data, "\x1e") {
			name, value, _ := strings.Cut(pair, "\x1f")
			in[name] = value
		}
		e, err := scaleevent.Parse(id, in)
		if err != nil {
			var rejected *scaleevent.Error
			if !errors.As(err, &rejected) || rejected.Reason == "" || rejected.Message == "" {
				t.Fatalf("rejected without a reason or message: %v", err)
			}
			return
		}
		if e.Pool == "" || (e.PodCount != nil && e.TargetReplicas != nil) {
			t.Fatalf("accepted an event that breaks the contract: %+v", e)
		}
		again, err := scaleevent.Parse(id, e.Fields())
		if err != nil {
			t.Fatalf("accepted, but not from its own fields: %v", err)
		}
		if diff := cmp.Diff(e, again); diff != "" {
			t.Errorf("event changed on its way (-first +second):\n%s", diff)
		}
	})
}
