package logs

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

const (
	// latePatience is how long the log server may take to hear of an end that it was told
	// of too late.
	latePatience = time.Hour
	// mostLate is how many such ends wait for it. What is more is left out: the scaler has
	// said it all in an Event and in the worker's result.
	mostLate = 1000
)

// lateEnds are the ends of workers whose logs were given up: nobody waits for the server
// any longer, the lease is finished and the pod may go. The server is told all the same
// when it is there again, so that it does not show the worker as running for ever. A
// relay that ends forgets them.
type lateEnds struct {
	group sync.WaitGroup
	room  chan struct{}
}

func newLateEnds() *lateEnds { return &lateEnds{room: make(chan struct{}, mostLate)} }

func (l *lateEnds) wait() { l.group.Wait() }

// finishLate announces the worker, if need be, and its end to the server, and does not
// wait for it.
func (w *worker) finishLate(relay context.Context, first, last *corev1.Pod, total totals) {
	select {
	case w.late.room <- struct{}{}:
	default:
		w.log.WarnContext(relay, "the log server will not be told of the end: too many wait for that")
		return
	}
	request := w.ending(last, total)
	w.late.group.Go(func() {
		defer func() { <-w.late.room }()
		ctx, cancel := context.WithTimeout(relay, latePatience)
		defer cancel()
		_, err := w.register(ctx, first)
		if err == nil {
			_, err = persist(ctx, w.policy, w.outage, w.log, "FinishWorker", func(ctx context.Context) (*logsv1.FinishWorkerResponse, error) {
				return w.client.FinishWorker(ctx, request)
			})
		}
		if err != nil {
			w.log.WarnContext(ctx, "the log server was not told of the end", "err", err)
			return
		}
		w.log.InfoContext(ctx, "told the log server of an end with incomplete logs", "logs", len(request.GetIncomplete()))
	})
}
