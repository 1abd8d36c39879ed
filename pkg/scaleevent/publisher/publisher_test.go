package publisher_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/internal/dev/redis"
	"github.com/ottoscaler/ottoscaler/internal/dev/redis/redistest"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent/publisher"
)

func TestAPublishedEventIsReadAsItWasMeant(t *testing.T) {
	rdb := redistest.ForTest(t, redis.Options{}).Client()
	two := 2
	want := scaleevent.Event{
		Type: scaleevent.ScaleUp, TaskID: "한진우", Pool: "gpu", PodCount: &two,
		Command: []string{"sh", "-c", "a && b"}, Env: map[string]string{"CI": "", "LINES": "a\nb"}, Metadata: map[string]string{"branch": "main"},
	}
	id, err := publisher.Publish(t.Context(), rdb, "events", want)
	if err != nil {
		t.Fatal(err)
	}
	want.ID = id
	entries, err := rdb.XRange(t.Context(), "events", id, id).Result()
	if err != nil || len(entries) != 1 {
		t.Fatalf("entries = %v, %v", entries, err)
	}
	fields := map[string]string{}
	for name, value := range entries[0].Values {
		fields[name] = value.(string)
	}
	got, err := scaleevent.Parse(id, fields)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

func TestABadEventIsNotSent(t *testing.T) {
	rdb := redistest.ForTest(t, redis.Options{}).Client()
	_, err := publisher.Publish(t.Context(), rdb, "events", scaleevent.Event{Type: "explode"})
	var rejected *scaleevent.Error
	if !errors.As(err, &rejected) || rejected.Reason != scaleevent.ReasonUnknownType {
		t.Errorf("error = %v, want one about the type", err)
	}
	if n, err := rdb.Exists(t.Context(), "events").Result(); err != nil || n != 0 {
		t.Errorf("the stream exists: %d, %v", n, err)
	}
}

func TestAServerThatIsAwayIsNoFaultOfTheEvent(t *testing.T) {
	server := redistest.ForTest(t, redis.Options{})
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	_, err := publisher.Publish(t.Context(), server.Client(), "events", scaleevent.Event{Type: scaleevent.ScaleUp})
	var rejected *scaleevent.Error
	if err == nil || errors.As(err, &rejected) {
		t.Errorf("error = %v, want one that is not about the event", err)
	}
}
