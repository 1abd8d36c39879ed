package scaleevent_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

func TestTheContractNamesEveryFieldReasonAndLimit(t *testing.T) {
	text, err := os.ReadFile("../../docs/event-contract.md")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{
		scaleevent.FieldType, scaleevent.FieldTaskID, scaleevent.FieldPool, scaleevent.FieldPodCount, scaleevent.FieldTargetReplicas,
		scaleevent.FieldPriority, scaleevent.FieldExpiresAt, scaleevent.FieldIdempotencyKey,
		scaleevent.FieldRepository, scaleevent.FieldCommitSHA, scaleevent.FieldTriggeredBy, scaleevent.FieldReason, scaleevent.FieldTimestamp,
		scaleevent.FieldImage, scaleevent.FieldCommand, scaleevent.FieldCPU, scaleevent.FieldMemory, scaleevent.FieldTraceparent,
		scaleevent.AliasJobID, scaleevent.AliasTargetDeployment, scaleevent.AliasCount,
		scaleevent.FieldDeadEventID, scaleevent.FieldDeadReason, scaleevent.FieldDeadMessage, scaleevent.FieldDeadTime,
		scaleevent.ResultEventID, scaleevent.ResultStatus, scaleevent.ResultReason, scaleevent.ResultMessage,
		scaleevent.ResultType, scaleevent.ResultTaskID, scaleevent.ResultPool, scaleevent.ResultAttempts,
		scaleevent.ReasonMissingField, scaleevent.ReasonUnknownType, scaleevent.ReasonInvalidField, scaleevent.ReasonFieldTooLarge,
		scaleevent.ReasonEventTooLarge, scaleevent.ReasonConflictingFields, scaleevent.ReasonExpired,
	}
	for _, word := range words {
		if !strings.Contains(string(text), "`"+word+"`") {
			t.Errorf("docs/event-contract.md does not name %s", word)
		}
	}
	for _, limit := range []string{
		fmt.Sprintf("| one value | %d KiB |", scaleevent.MaxFieldBytes>>10),
		fmt.Sprintf("together | %d KiB (`MAX_EVENT_BYTES`", scaleevent.DefaultMaxEventBytes>>10),
		fmt.Sprintf("`idempotency_key` | %d bytes |", scaleevent.MaxNameBytes),
		fmt.Sprintf("`timestamp` | %d KiB each |", scaleevent.MaxOriginBytes>>10),
		fmt.Sprintf("| `image` | %d bytes |", scaleevent.MaxImageBytes),
		fmt.Sprintf("| `env.NAME` fields | %d |", scaleevent.MaxEnv),
		fmt.Sprintf("| metadata fields | %d, and %d KiB together |", scaleevent.MaxMetadata, scaleevent.MaxMetadataBytes>>10),
		fmt.Sprintf("| 1 to %d: how many", scaleevent.MaxPodCount),
		fmt.Sprintf("| 0 to %d: how many", scaleevent.MaxTargetReplicas),
		fmt.Sprintf("| 0 to %d; workers", scaleevent.MaxPriority),
		fmt.Sprintf("has up to %d letters", scaleevent.MaxMetadataNameBytes),
	} {
		if !strings.Contains(string(text), limit) {
			t.Errorf("docs/event-contract.md does not say %q", limit)
		}
	}
}
