package scaleevent_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

type fields = map[string]string

func number(n int) *int { return &n }

func TestParseReadsEveryFieldOfTheContract(t *testing.T) {
	got, err := scaleevent.Parse("1-0", fields{
		"type": "scale_up", "task_id": "build 7", "pool": "gpu", "pod_count": "3", "priority": "9",
		"expires_at": "2026-11-22T22:00:00+01:00", "idempotency_key": "k",
		"repository": "r", "commit_sha": "c", "triggered_by": "b", "reason": "why", "timestamp": "now",
		"image": "registry.example/agents/go:1", "command": `["sh","-c","a && b"]`, "env.CI_A": "1", "env.EMPTY": "",
		"cpu": "500m", "memory": "1Gi", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"branch": "main",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := scaleevent.Event{
		ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "build 7", Pool: "gpu", PodCount: number(3), Priority: 9,
		ExpiresAt: time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC), IdempotencyKey: "k",
		Repository: "r", CommitSHA: "c", TriggeredBy: "b", Reason: "why", Timestamp: "now",
		Image: "registry.example/agents/go:1", Command: []string{"sh", "-c", "a && b"}, Env: fields{"CI_A": "1", "EMPTY": ""},
		CPU: "500m", Memory: "1Gi", Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		Metadata: fields{"branch": "main"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

func TestParseFillsInWhatIsLeftOut(t *testing.T) {
	for name, row := range map[string]struct {
		id   string
		in   fields
		want scaleevent.Event
	}{
		"a scale-up adds one worker of its own task to the default pool": {
			"1-0",
			fields{"type": "scale_up"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "1-0", Pool: "default", PodCount: number(1)},
		},
		"before it has an ID, it has no task": {
			"",
			fields{"type": "scale_up"},
			scaleevent.Event{Type: scaleevent.ScaleUp, Pool: "default", PodCount: number(1)},
		},
		"a total without a task is about the pool": {
			"1-0",
			fields{"type": "scale_up", "target_replicas": "4"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, Pool: "default", TargetReplicas: number(4)},
		},
		"a scale-down without a number removes all of its task": {
			"1-0",
			fields{"type": "scale_down", "task_id": "t"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleDown, TaskID: "t", Pool: "default"},
		},
		"a scale-down with a number but no task is about the pool": {
			"1-0",
			fields{"type": "scale_down", "pod_count": "2"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleDown, Pool: "default", PodCount: number(2)},
		},
		"aliases are read": {
			"1-0",
			fields{"type": "scale_up", "job_id": "j", "target_deployment": "big", "count": "2"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "j", Pool: "big", PodCount: number(2)},
		},
		"an alias may repeat its field": {
			"1-0",
			fields{"type": "scale_up", "job_id": "j", "task_id": "j"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "j", Pool: "default", PodCount: number(1)},
		},
		"an empty value is no value": {
			"1-0",
			fields{"type": "scale_up", "task_id": "", "job_id": "j", "pod_count": "", "priority": "", "expires_at": "", "image": "", "command": "", "cpu": ""},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "j", Pool: "default", PodCount: number(1)},
		},
		"a command of words": {
			"1-0",
			fields{"type": "scale_up", "task_id": "t", "command": "  make   test\n"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "t", Pool: "default", PodCount: number(1), Command: []string{"make", "test"}},
		},
		"an expiry in seconds": {
			"1-0",
			fields{"type": "scale_up", "task_id": "t", "expires_at": "1700000000"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "t", Pool: "default", PodCount: number(1), ExpiresAt: time.Unix(1700000000, 0).UTC()},
		},
		"an invalid trace is ignored": {
			"1-0",
			fields{"type": "scale_up", "task_id": "t", "traceparent": "00-00000000000000000000000000000000-b7ad6b7169203331-01"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "t", Pool: "default", PodCount: number(1)},
		},
		"a dead letter may be sent again": {
			"1-0",
			fields{"type": "scale_up", "task_id": "t", "dead_event_id": "0-1", "dead_reason": "x", "dead_message": "y", "dead_time": "z"},
			scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, TaskID: "t", Pool: "default", PodCount: number(1)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := scaleevent.Parse(row.id, row.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRejectsWithReasonAndField(t *testing.T) {
	up := func(name, value string) fields { return fields{"type": "scale_up", name: value} }
	down := func(name, value string) fields { return fields{"type": "scale_down", "task_id": "t", name: value} }
	many := func(prefix string, n int, value string) fields {
		f := fields{"type": "scale_up"}
		for i := range n {
			f[fmt.Sprintf("%s%d", prefix, i)] = value
		}
		return f
	}
	for name, row := range map[string]struct {
		in            fields
		reason, field string
	}{
		"no fields":                       {fields{}, "missing_field", "type"},
		"no type":                         {fields{"pod_count": "1"}, "missing_field", "type"},
		"unknown type":                    {fields{"type": "explode"}, "unknown_type", "type"},
		"type in capitals":                {fields{"type": "SCALE_UP"}, "unknown_type", "type"},
		"count is not a number":           {up("pod_count", "many"), "invalid_field", "pod_count"},
		"count is negative":               {up("pod_count", "-1"), "invalid_field", "pod_count"},
		"count is zero":                   {up("pod_count", "0"), "invalid_field", "pod_count"},
		"count is a fraction":             {up("pod_count", "1.5"), "invalid_field", "pod_count"},
		"count is signed":                 {up("pod_count", "+1"), "invalid_field", "pod_count"},
		"count is padded":                 {up("pod_count", " 1"), "invalid_field", "pod_count"},
		"count is too high":               {up("pod_count", "1001"), "invalid_field", "pod_count"},
		"count overflows":                 {up("pod_count", "99999999999999999999"), "invalid_field", "pod_count"},
		"count under its alias":           {up("count", "-1"), "invalid_field", "count"},
		"total is negative":               {up("target_replicas", "-1"), "invalid_field", "target_replicas"},
		"total is a signed zero":          {up("target_replicas", "-0"), "invalid_field", "target_replicas"},
		"priority is a signed zero":       {up("priority", "-0"), "invalid_field", "priority"},
		"expiry is before 1970":           {up("expires_at", "-1"), "invalid_field", "expires_at"},
		"total is too high":               {up("target_replicas", "5001"), "invalid_field", "target_replicas"},
		"priority is too high":            {up("priority", "1001"), "invalid_field", "priority"},
		"priority is negative":            {up("priority", "-1"), "invalid_field", "priority"},
		"expiry is a word":                {up("expires_at", "tomorrow"), "invalid_field", "expires_at"},
		"expiry is in milliseconds":       {up("expires_at", "1700000000000"), "invalid_field", "expires_at"},
		"expiry has no zone":              {up("expires_at", "2026-11-22T22:00:00"), "invalid_field", "expires_at"},
		"expiry leaves the years":         {up("expires_at", "9999-12-31T23:59:59-01:00"), "invalid_field", "expires_at"},
		"pool has capitals":               {up("pool", "GPU"), "invalid_field", "pool"},
		"pool ends with a dash":           {up("pool", "gpu-"), "invalid_field", "pool"},
		"pool is too long":                {up("pool", strings.Repeat("a", 64)), "invalid_field", "pool"},
		"pool ends with a line":           {up("pool", "gpu\n"), "invalid_field", "pool"},
		"pool under its alias":            {up("target_deployment", "a/b"), "invalid_field", "target_deployment"},
		"task has a line break":           {up("task_id", "a\nb"), "invalid_field", "task_id"},
		"task is not UTF-8":               {up("task_id", "\xff"), "invalid_field", "task_id"},
		"task is too long":                {up("task_id", strings.Repeat("t", 257)), "field_too_large", "task_id"},
		"key is too long":                 {up("idempotency_key", strings.Repeat("k", 257)), "field_too_large", "idempotency_key"},
		"task and alias differ":           {fields{"type": "scale_up", "task_id": "a", "job_id": "b"}, "conflicting_fields", "job_id"},
		"count and total":                 {fields{"type": "scale_up", "pod_count": "1", "target_replicas": "1"}, "conflicting_fields", "target_replicas"},
		"repository is too long":          {up("repository", strings.Repeat("r", 4097)), "field_too_large", "repository"},
		"reason has a zero byte":          {up("reason", "a\x00b"), "invalid_field", "reason"},
		"image has a blank":               {up("image", "a b"), "invalid_field", "image"},
		"image is an option":              {up("image", "-rm"), "invalid_field", "image"},
		"image is too long":               {up("image", strings.Repeat("i", 513)), "field_too_large", "image"},
		"command is half JSON":            {up("command", `["sh", 1]`), "invalid_field", "command"},
		"command is an empty array":       {up("command", `[]`), "invalid_field", "command"},
		"command is blanks":               {up("command", `   `), "invalid_field", "command"},
		"command's program is empty":      {up("command", `[""]`), "invalid_field", "command"},
		"command has a zero byte":         {up("command", `["sh","\u0000"]`), "invalid_field", "command"},
		"command grows as JSON":           {up("command", strings.Repeat("a ", 32<<10)), "field_too_large", "command"},
		"cpu is zero":                     {up("cpu", "0"), "invalid_field", "cpu"},
		"cpu is negative":                 {up("cpu", "-1"), "invalid_field", "cpu"},
		"cpu is a zero with an exponent":  {up("cpu", "0e9"), "invalid_field", "cpu"},
		"memory has an unknown unit":      {up("memory", "1GB"), "invalid_field", "memory"},
		"env has no name":                 {up("env.", "1"), "invalid_field", "env."},
		"env begins with a digit":         {up("env.1A", "1"), "invalid_field", "env.1A"},
		"env is reserved":                 {up("env.OTTO_TASK_ID", "1"), "invalid_field", "env.OTTO_TASK_ID"},
		"env is reserved for metadata":    {up("env.OTTO_META_X", "1"), "invalid_field", "env.OTTO_META_X"},
		"env is not UTF-8":                {up("env.A", "\xff"), "invalid_field", "env.A"},
		"unknown field with a slash":      {up("a/b", "1"), "invalid_field", "a/b"},
		"unknown field with a dot first":  {up(".a", "1"), "invalid_field", ".a"},
		"unknown field without a name":    {up("", "1"), "invalid_field", ""},
		"unknown field's name too long":   {up(strings.Repeat("n", 64), "1"), "invalid_field", strings.Repeat("n", 63)},
		"one field of 1 MiB":              {up("payload", strings.Repeat("x", 1<<20)), "field_too_large", "payload"},
		"one field a byte too long":       {up("payload", strings.Repeat("x", 64<<10+1)), "field_too_large", "payload"},
		"too many unknown fields":         {many("m", 257, ""), "event_too_large", ""},
		"too many variables":              {many("env.E", 257, ""), "event_too_large", ""},
		"unknown fields too large":        {many("m", 3, strings.Repeat("x", 60<<10)), "event_too_large", ""},
		"scale-down of everything":        {fields{"type": "scale_down"}, "missing_field", "task_id"},
		"scale-down with an empty task":   {fields{"type": "scale_down", "task_id": "", "pod_count": "1"}, "invalid_field", "task_id"},
		"scale-down with an empty alias":  {fields{"type": "scale_down", "job_id": "", "pod_count": "1"}, "invalid_field", "job_id"},
		"scale-down with an empty count":  {down("pod_count", ""), "invalid_field", "pod_count"},
		"scale-down with an empty pool":   {down("pool", ""), "invalid_field", "pool"},
		"scale-down with an empty target": {down("target_replicas", ""), "invalid_field", "target_replicas"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scaleevent.Parse("1-0", row.in)
			var rejected *scaleevent.Error
			if !errors.As(err, &rejected) {
				t.Fatalf("error = %v, want an *Error", err)
			}
			if rejected.Reason != row.reason || rejected.Field != row.field {
				t.Errorf("rejected for %s of field %q, want %s of field %q (message: %s)", rejected.Reason, rejected.Field, row.reason, row.field, rejected.Message)
			}
			if rejected.Message == "" || len(rejected.Message) > 400 || strings.ContainsAny(rejected.Message, "\n\x00") {
				t.Errorf("message is not a short line: %q", rejected.Message)
			}
		})
	}
}

func TestParseAcceptsValuesAtTheirLimits(t *testing.T) {
	for name, in := range map[string]fields{
		"largest count":         {"type": "scale_up", "pod_count": "1000"},
		"empty pool":            {"type": "scale_down", "target_replicas": "0"},
		"largest total":         {"type": "scale_up", "target_replicas": "5000"},
		"longest task":          {"type": "scale_up", "task_id": strings.Repeat("t", 256)},
		"longest pool":          {"type": "scale_up", "pool": strings.Repeat("p", 63)},
		"largest unknown field": {"type": "scale_up", "payload": strings.Repeat("x", 64<<10)},
		"task in any script":    {"type": "scale_up", "task_id": "한진우/빌드 №7 🚀"},
		"whole digits of cpu":   {"type": "scale_up", "cpu": "0.5", "memory": "1e9"},
		"binary units":          {"type": "scale_up", "memory": "512Mi", "cpu": "100m"},
		"future trace version":  {"type": "scale_up", "traceparent": "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := scaleevent.Parse("1-0", in); err != nil {
				t.Errorf("rejected: %v", err)
			}
		})
	}
}

func TestAnEventExpiresAtItsTimeAndNotBefore(t *testing.T) {
	at := time.Date(2026, 11, 22, 21, 0, 0, 0, time.UTC)
	e := scaleevent.Event{ExpiresAt: at}
	if e.Expired(at.Add(-time.Nanosecond)) {
		t.Error("expired a nanosecond early")
	}
	if !e.Expired(at) {
		t.Error("not expired at its time")
	}
	if (scaleevent.Event{}).Expired(at) {
		t.Error("an event without expiry is expired")
	}
}

func TestOrderingKeysDifferByPoolAndTask(t *testing.T) {
	keys := map[string]bool{}
	for _, e := range []scaleevent.Event{
		{Pool: "a", TaskID: "t"}, {Pool: "b", TaskID: "t"}, {Pool: "a", TaskID: "b/t"}, {Pool: "a"}, {Pool: "a", TaskID: "/t"},
	} {
		keys[e.OrderingKey()] = true
	}
	if len(keys) != 5 {
		t.Errorf("5 pairs of pool and task have %d keys: %v", len(keys), keys)
	}
}
