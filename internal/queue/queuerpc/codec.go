package queuerpc

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// A codec turns the items of one topic into messages and back.
type codec[T any] struct {
	topic  queuev1.Topic
	encode func(value T, into *queuev1.Item)
	decode func(from *queuev1.Item) (T, error)
	size   func(value T) int // in bytes, roughly
	// brief is encode for an item behind another, with what it takes to judge it.
	brief func(value T, into *queuev1.Item)
}

var events = codec[*scaleevent.Event]{
	topic: queuev1.Topic_TOPIC_SCALE_EVENTS,
	encode: func(e *scaleevent.Event, into *queuev1.Item) {
		into.Payload = &queuev1.Item_ScaleEvent{ScaleEvent: encodeEvent(e)}
	},
	decode: func(from *queuev1.Item) (*scaleevent.Event, error) {
		payload := from.GetScaleEvent()
		if payload == nil {
			return nil, errors.New("no scale event in it")
		}
		return decodeEvent(from.GetId(), payload)
	},
	size: sizeOfEvent,
	brief: func(e *scaleevent.Event, into *queuev1.Item) {
		into.Payload = &queuev1.Item_ScaleEvent{ScaleEvent: encodeBrief(e)}
	},
}

var workers = codec[queue.Worker]{
	topic: queuev1.Topic_TOPIC_WORKERS,
	encode: func(w queue.Worker, into *queuev1.Item) {
		into.Payload = &queuev1.Item_Worker{Worker: encodeWorker(w)}
	},
	decode: func(from *queuev1.Item) (queue.Worker, error) {
		payload := from.GetWorker()
		if payload == nil {
			return queue.Worker{}, errors.New("no worker in it")
		}
		return decodeWorker(payload), nil
	},
	size: func(queue.Worker) int { return 0 }, // a few names
	brief: func(w queue.Worker, into *queuev1.Item) {
		into.Payload = &queuev1.Item_Worker{Worker: encodeWorker(w)}
	},
}

func encodeWorker(w queue.Worker) *queuev1.Worker {
	return &queuev1.Worker{Namespace: w.Namespace, Name: w.Name, TaskId: w.TaskID, Pool: w.Pool, EventId: w.EventID}
}

func decodeWorker(w *queuev1.Worker) queue.Worker {
	return queue.Worker{Namespace: w.GetNamespace(), Name: w.GetName(), TaskID: w.GetTaskId(), Pool: w.GetPool(), EventID: w.GetEventId()}
}

func (c codec[T]) encodeItem(item *queue.Item[T]) *queuev1.Item {
	message := &queuev1.Item{Id: item.ID, OrderingKey: item.Key, Traceparent: item.Traceparent, Takes: item.Takes, Given: counts(item.Given)}
	c.encode(item.Value, message)
	return message
}

// decodeItem returns what it could read of the item also with an error, so that
// its ID can be told.
func (c codec[T]) decodeItem(message *queuev1.Item) (queue.Item[T], error) {
	item := queue.Item[T]{ID: message.GetId(), Key: message.GetOrderingKey(), Traceparent: message.GetTraceparent(), Takes: message.GetTakes(), Given: numbers(message.GetGiven())}
	if item.ID == "" {
		return item, errors.New("reading an item: it has no ID")
	}
	value, err := c.decode(message)
	if err != nil {
		return item, fmt.Errorf("reading item %s: %w", item.ID, err)
	}
	item.Value = value
	return item, nil
}

// encodeBehind lays out the items behind another, and returns about how many bytes
// they are on their way. What a message has no room for is left out: it is as if it
// had not come yet.
func (c codec[T]) encodeBehind(items []queue.Item[T]) (messages []*queuev1.Item, size int) {
	for i := range items {
		item := &items[i]
		message := &queuev1.Item{Id: item.ID, Takes: item.Takes, Given: counts(item.Given)}
		c.brief(item.Value, message)
		if size += proto.Size(message); size > batchBytes {
			break
		}
		messages = append(messages, message)
	}
	return messages, size
}

// decodeBehind reads what encodeBehind wrote, up to the first item that it cannot
// read: who knows what that one takes.
func (c codec[T]) decodeBehind(messages []*queuev1.Item) []queue.Item[T] {
	var items []queue.Item[T]
	for _, message := range messages {
		item, err := c.decodeItem(message)
		if err != nil {
			break
		}
		items = append(items, item)
	}
	return items
}
