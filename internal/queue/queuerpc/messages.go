package queuerpc

import (
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ottoscaler/ottoscaler/internal/queue"
	queuev1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/queue/v1"
)

func encodeOutcome(o queue.Outcome) *queuev1.ProduceResponse {
	status := queuev1.Outcome_STATUS_UNSPECIFIED
	switch o.Status {
	case queue.Done:
		status = queuev1.Outcome_STATUS_DONE
	case queue.Rejected:
		status = queuev1.Outcome_STATUS_REJECTED
	}
	return &queuev1.ProduceResponse{Message: &queuev1.ProduceResponse_Outcome{Outcome: &queuev1.Outcome{
		ItemId:   o.ItemID,
		Status:   status,
		Reason:   text(o.Reason),
		Message:  text(o.Message),
		Attempts: count(o.Attempts),
		Details:  texts(o.Details),
		Gives:    counts(o.Gives),
	}}}
}

func decodeOutcome(o *queuev1.Outcome) (queue.Outcome, error) {
	outcome := queue.Outcome{
		ItemID:   o.GetItemId(),
		Reason:   o.GetReason(),
		Message:  o.GetMessage(),
		Attempts: int(o.GetAttempts()),
		Details:  o.GetDetails(),
		Gives:    numbers(o.GetGives()),
	}
	switch o.GetStatus() {
	case queuev1.Outcome_STATUS_DONE:
		outcome.Status = queue.Done
	case queuev1.Outcome_STATUS_REJECTED:
		outcome.Status = queue.Rejected
	default:
		return outcome, invalid("outcome of item %s has status %s", o.GetItemId(), o.GetStatus())
	}
	return outcome, nil
}

func encodeVerdict(lease uint64, v *queue.Verdict) *queuev1.ConsumeRequest_Verdict {
	verdict := &queuev1.ConsumeRequest_Verdict{LeaseId: lease}
	switch v.Status {
	case queue.Done:
		verdict.Decision = &queuev1.ConsumeRequest_Verdict_Done{Done: &queuev1.ConsumeRequest_Done{
			Message: text(v.Message), Details: texts(v.Details), Gives: counts(v.Gives),
		}}
	case queue.Rejected:
		verdict.Decision = &queuev1.ConsumeRequest_Verdict_Reject{Reject: &queuev1.ConsumeRequest_Reject{
			Reason: text(v.Reason), Message: text(v.Message), Details: texts(v.Details),
		}}
	default:
		verdict.Decision = &queuev1.ConsumeRequest_Verdict_Retry{Retry: &queuev1.ConsumeRequest_Retry{
			After: durationpb.New(v.After), Message: text(v.Message),
		}}
	}
	return verdict
}

// sizeOfVerdict is about how many bytes the verdict is on its way.
func sizeOfVerdict(v *queue.Verdict) int {
	return len(v.Message) + sizeOfTexts(v.Details) + sizeOfGiven*len(v.Gives)
}

// sizeOfGiven is about how many bytes an ID and a number are.
const sizeOfGiven = 32

func decodeVerdict(v *queuev1.ConsumeRequest_Verdict) (queue.Verdict, error) {
	switch decision := v.GetDecision().(type) {
	case *queuev1.ConsumeRequest_Verdict_Done:
		verdict := queue.Finish(decision.Done.GetMessage(), decision.Done.GetDetails())
		verdict.Gives = numbers(decision.Done.GetGives())
		return verdict, nil
	case *queuev1.ConsumeRequest_Verdict_Retry:
		return queue.RetryAfter(decision.Retry.GetAfter().AsDuration(), decision.Retry.GetMessage()), nil
	case *queuev1.ConsumeRequest_Verdict_Reject:
		return queue.Reject(decision.Reject.GetReason(), decision.Reject.GetMessage(), decision.Reject.GetDetails()), nil
	default:
		return queue.Verdict{}, invalid("the verdict on lease %d decides nothing", v.GetLeaseId())
	}
}

func encodeStats(topic queuev1.Topic, s queue.Stats) *queuev1.GetStatsResponse_TopicStats {
	return &queuev1.GetStatsResponse_TopicStats{
		Topic:       topic,
		Ready:       count(s.Ready),
		Blocked:     count(s.Blocked),
		Leased:      count(s.Leased),
		Unsettled:   count(s.Unsettled),
		Credits:     count(s.Credits),
		Subscribers: count(s.Subscribers),
		Producers:   count(s.Producers),
		OldestAge:   durationpb.New(s.OldestAge),
	}
}

func decodeStats(s *queuev1.GetStatsResponse_TopicStats) queue.Stats {
	return queue.Stats{
		Ready:       int(s.GetReady()),
		Blocked:     int(s.GetBlocked()),
		Leased:      int(s.GetLeased()),
		Unsettled:   int(s.GetUnsettled()),
		Credits:     int(s.GetCredits()),
		Subscribers: int(s.GetSubscribers()),
		Producers:   int(s.GetProducers()),
		OldestAge:   s.GetOldestAge().AsDuration(),
	}
}

func encodeEnd(end queue.WorkerEnd) *queuev1.ReportWorkerEndRequest {
	r := &queuev1.ReportWorkerEndRequest{Worker: encodeWorker(end.Worker), Status: end.Status, Reason: text(end.Reason), Message: text(end.Message), Attempt: uint32(max(end.Attempt, 0)), Id: end.ID} //nolint:gosec // nobody tries so often
	if end.ExitCode != nil {
		code := int32(*end.ExitCode) //nolint:gosec // Kubernetes has no others
		r.ExitCode = &code
	}
	return r
}

func decodeEnd(r *queuev1.ReportWorkerEndRequest) queue.WorkerEnd {
	end := queue.WorkerEnd{Worker: decodeWorker(r.GetWorker()), Status: r.GetStatus(), Reason: r.GetReason(), Message: r.GetMessage(), Attempt: int(r.GetAttempt()), ID: r.GetId()}
	if r.ExitCode != nil {
		code := int(r.GetExitCode())
		end.ExitCode = &code
	}
	return end
}

// text is what protobuf takes for a string. A message that quotes somebody's
// bytes must not break the stream that carries it.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func texts(details map[string]string) map[string]string {
	if len(details) == 0 {
		return nil
	}
	clean := make(map[string]string, len(details))
	for name, value := range details {
		clean[text(name)] = text(value)
	}
	return clean
}

// count fits an int into the protocol's numbers.
func count(n int) uint32 {
	return uint32(min(max(n, 0), math.MaxUint32)) //nolint:gosec // bounded
}

// minLease is the shortest lease that a server grants.
const minLease = time.Second
