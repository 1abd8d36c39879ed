package queue_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	"github.com/ottoscaler/ottoscaler/internal/queue/queuetest"
)

// logLines records a log, one line for each record at info or above.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// serve runs Serve until the returned stop is called, which waits for its end.
func serve(t *testing.T, q queue.Queue[string], opts queue.SubscribeOptions, handle func(context.Context, queue.Delivery[string]) queue.Verdict) (log *logLines, stop func()) {
	t.Helper()
	log = &logLines{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	opts.Name = "test"
	go func() { done <- queue.Serve(ctx, q, opts, log.logger(), handle) }()
	return log, sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve returned %v, want nil when told to stop", err)
		}
	})
}

func TestServeRunsAHandlerForEachCredit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		for i := range 10 {
			offer(t, p, fmt.Sprint(i), "")
		}
		began := time.Now()
		_, stop := serve(t, q, queue.SubscribeOptions{Credits: 3}, func(context.Context, queue.Delivery[string]) queue.Verdict {
			time.Sleep(time.Second)
			return queue.Finish("", nil)
		})
		defer stop()
		for range 10 {
			if _, err := p.Outcome(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("10 items of a second, 3 at once, took %s, want 4s", took)
		}
	})
}

func TestServeLetsHandlersFinishWhenToldToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "a", "")
		_, stop := serve(t, q, queue.SubscribeOptions{Credits: 1}, func(ctx context.Context, _ queue.Delivery[string]) queue.Verdict {
			time.Sleep(15 * time.Second)
			return queue.Finish(fmt.Sprint(ctx.Err()), nil)
		})
		synctest.Wait()
		offer(t, p, "b", "") // too late to be taken
		stop()
		o, err := p.Outcome(t.Context())
		if err != nil || o.ItemID != "a" || o.Message != "<nil>" {
			t.Errorf("outcome = %+v (%v), want a finished in peace", o, err)
		}
		stats, err := q.Stats(t.Context())
		if want := (queue.Stats{Ready: 1, Unsettled: 1, Producers: 1, OldestAge: stats.OldestAge}); err != nil || stats != want {
			t.Errorf("statistics are %+v (%v), want %+v", stats, err, want)
		}
	})
}

func TestServeCancelsHandlersThatOutliveTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "a", "")
		opts := queue.SubscribeOptions{Credits: 1, DrainTimeout: 5 * time.Second}
		log, stop := serve(t, q, opts, func(ctx context.Context, _ queue.Delivery[string]) queue.Verdict {
			<-ctx.Done()
			return queue.Finish("a lie", nil)
		})
		synctest.Wait()
		began := time.Now()
		stop()
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("the drain took %s, want 5s", took)
		}
		stats, err := q.Stats(t.Context())
		if err != nil || stats.Ready != 1 || stats.Unsettled != 0 {
			t.Errorf("statistics are %+v (%v), want the item ready again", stats, err)
		}
		if log.count("verdict dropped") != 1 {
			t.Errorf("log says %q, want one dropped verdict", log.buf.String())
		}
	})
}

func TestServeCancelsTheHandlerOfALostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "a", "")
		cause := make(chan error, 1)
		_, stop := serve(t, q, queue.SubscribeOptions{Credits: 1}, func(ctx context.Context, _ queue.Delivery[string]) queue.Verdict {
			<-ctx.Done()
			cause <- context.Cause(ctx)
			return queue.Finish("", nil)
		})
		defer stop()
		synctest.Wait()
		if err := p.Settle(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := <-cause; !errors.Is(err, queue.ErrLeaseLost) {
			t.Errorf("the handler was cancelled because of %v, want ErrLeaseLost", err)
		}
	})
}

func TestServeSubscribesAgainAndLogsEachOutageOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queuetest.NewFaulty(queue.NewMemory[string]())
		p := produce(t, q.Queue)
		attempts := make(chan int, 10)
		log, stop := serve(t, q, queue.SubscribeOptions{Credits: 1}, func(ctx context.Context, d queue.Delivery[string]) queue.Verdict {
			attempts <- d.Attempt
			if d.Attempt <= 2 {
				<-ctx.Done() // held when the connection breaks
			}
			return queue.Finish("", nil)
		})
		defer stop()
		offer(t, p, "a", "")
		for want := 1; want <= 2; want++ {
			if got := <-attempts; got != want {
				t.Errorf("attempt = %d, want %d", got, want)
			}
			q.Refuse(errors.New("connection refused"))
			q.Break()
			time.Sleep(time.Minute)
			if got := log.count("queue is unreachable, trying again"); got != want {
				t.Errorf("outage %d: %d warnings, want %d", want, got, want)
			}
			q.Refuse(nil)
			time.Sleep(5 * time.Second)
			if got := log.count("connected to the queue again"); got != want {
				t.Errorf("outage %d: %d all-clears, want %d", want, got, want)
			}
		}
		if o, err := p.Outcome(t.Context()); err != nil || o.Attempts != 3 {
			t.Errorf("outcome = %+v (%v), want 3 attempts", o, err)
		}
	})
}

func TestServeDoesNotHandleAnItemTwiceWhenItsVerdictArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queuetest.NewFaulty(queue.NewMemory[string]())
		p := produce(t, q.Queue)
		handled := 0
		_, stop := serve(t, q, queue.SubscribeOptions{Credits: 1}, func(context.Context, queue.Delivery[string]) queue.Verdict {
			handled++
			return queue.Finish("", nil)
		})
		defer stop()
		offer(t, p, "a", "")
		synctest.Wait()
		q.Break()
		time.Sleep(time.Minute)
		if handled != 1 {
			t.Errorf("handled %d times, want once", handled)
		}
	})
}

func TestServeHandlesAnItemAgainWhenItsVerdictWasLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queuetest.NewFaulty(queue.NewMemory[string]())
		p := produce(t, q.Queue)
		_, stop := serve(t, q, queue.SubscribeOptions{Credits: 1}, func(context.Context, queue.Delivery[string]) queue.Verdict {
			return queue.Finish("", nil)
		})
		defer stop()
		q.DropVerdicts(true)
		offer(t, p, "a", "")
		synctest.Wait()
		q.DropVerdicts(false)
		q.Break()
		if o, err := p.Outcome(t.Context()); err != nil || o.Attempts != 2 {
			t.Errorf("outcome = %+v (%v), want 2 attempts", o, err)
		}
	})
}

func TestServeNeverHandlesAnItemTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := queue.NewMemory[string]()
		p := produce(t, q)
		offer(t, p, "a", "")
		var began, running int // the handlers are apart by their turns
		_, stop := serve(t, q, queue.SubscribeOptions{Credits: 3}, func(ctx context.Context, _ queue.Delivery[string]) queue.Verdict {
			began++
			if running++; running > 1 {
				t.Errorf("%d handlers have the item at once", running)
			}
			if began == 1 {
				<-ctx.Done()
				time.Sleep(time.Minute) // it takes its time
			}
			running--
			return queue.Finish("", nil)
		})
		defer stop()
		synctest.Wait()
		// The first lease is lost, and the item comes back to the same subscription.
		if err := p.Settle(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		offer(t, p, "a", "")
		if _, err := p.Outcome(t.Context()); err != nil {
			t.Fatal(err)
		}
		if began != 2 {
			t.Errorf("%d handlers began, want 2", began)
		}
	})
}

func TestServeKeepsRetriesToItselfOnceToldToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memoryLog := &logLines{}
		q := queue.NewMemory[string](queue.WithLogger(memoryLog.logger()))
		p := produce(t, q)
		offer(t, p, "a", "")
		offer(t, p, "b", "")
		release := make(chan struct{})
		log, stop := serve(t, q, queue.SubscribeOptions{Credits: 2}, func(_ context.Context, d queue.Delivery[string]) queue.Verdict {
			<-release
			if d.ID == "b" {
				time.Sleep(time.Second)
			}
			return queue.RetryAfter(0, "stopping")
		})
		synctest.Wait()
		go func() {
			time.Sleep(time.Second) // stop has come first
			close(release)
			time.Sleep(time.Second / 2)
			if stats, err := q.Stats(t.Context()); err != nil || stats.Leased != 2 {
				t.Errorf("while b is handled, statistics are %+v (%v), want both leased", stats, err)
			}
		}()
		stop()
		stats, err := q.Stats(t.Context())
		if err != nil || stats.Ready != 2 {
			t.Errorf("statistics are %+v (%v), want both ready", stats, err)
		}
		for _, l := range []*logLines{log, memoryLog} {
			if l.count("level=WARN") != 0 {
				t.Errorf("an orderly end warns: %q", l.buf.String())
			}
		}
		if memoryLog.count("leases=2") != 1 {
			t.Errorf("log says %q, want one line about both leases", memoryLog.buf.String())
		}
	})
}
