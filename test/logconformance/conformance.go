// Package logconformance tests a log server, whoever wrote it, against what
// docs/log-protocol.md promises. Each promise is a test of its own, and a relay of
// the suite's own plays the other side, so that nothing of the real relay's
// forgiveness hides a fault.
//
// For a server that runs somewhere:
//
//	go test ./test/logconformance -v -addr host:port
//
// It writes workers of its own, under random UIDs, and leaves them behind.
package logconformance

import (
	"context"
	"crypto/rand"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	logsv1 "github.com/ottoscaler/ottoscaler/pkg/gen/ottoscaler/logs/v1"
)

// Patience is how long a test waits for an answer: long enough that a busy machine
// fails nothing, and the same as the relay's.
const patience = 30 * time.Second

// A Server is what is tested.
type Server struct {
	// Addr is where it listens.
	Addr string
	// DialOptions say how to reach it; by default it is in plaintext.
	DialOptions []grpc.DialOption
	// Restart ends the server, as brutally as it likes, and starts it again with
	// the same data. Nil leaves the tests of a restart out.
	Restart func(ctx context.Context) error
}

// Run runs the suite.
func Run(t *testing.T, server Server) {
	s := &suite{server: server}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *suite)
	}{
		{"RegisteringAgainGivesTheSameAnswer", registeringAgain},
		{"WorkerWithoutUIDIsRefused", workerWithoutUID},
		{"NewLogBeginsAtItsBeginning", newLog},
		{"LogOfUnknownWorkerIsRefused", unknownWorker},
		{"StreamThatBeginsWithABatchIsRefused", batchFirst},
		{"LinesAreAcknowledged", linesAreAcknowledged},
		{"AcknowledgementsNeverGoBack", acknowledgementsGrow},
		{"PositionComesBackAsItWasSent", positionComesBack},
		{"PositionWithoutTimeComesBackWithoutTime", positionWithoutTime},
		{"BrokenStreamIsResumedBehindItsLastStoredBatch", brokenStream},
		{"HeldLinesAreDroppedWithoutError", heldLines},
		{"BatchHeldInPartIsStoredInPart", heldInPart},
		{"MissingLinesAreAskedForAgain", missingLines},
		{"SecondStreamSupersedesTheFirst", supersede},
		{"ManyStreamsForOneLogLeaveOneOwner", supersedeOften},
		{"ContainersAndRestartsAreLogsOfTheirOwn", ownLogs},
		{"ManyWorkersAreServedAtOnce", manyWorkers},
		{"LinesAreBytes", linesAreBytes},
		{"EmptyLinesCount", emptyLines},
		{"LineOfThreeMebibytesIsTaken", longLine},
		{"BatchOf256KiBIsTaken", largestBatch},
		{"StreamsOfLinesAreTaken", streamsOfLines},
		{"GzippedMessagesAreTaken", gzipped},
		{"GapIsALineInItsPlace", gapIsALine},
		{"GapIsStoredOnce", gapOnce},
		{"EmptyLogIsComplete", emptyLog},
		{"CompletionComparesWhatIsStored", completionCompares},
		{"CompleteLogStaysComplete", staysComplete},
		{"CompletingAgainGivesTheSameAnswer", completingAgain},
		{"HalfClosedStreamIsEnded", halfClose},
		{"HalfClosedStreamIsEndedAlsoWithoutCompletion", halfCloseEarly},
		{"FinishingAgainChangesNothing", finishingAgain},
		{"LogsThatWereGivenUpAreOver", finishIncomplete},
		{"FinishOfUnknownWorkerIsRefused", finishUnknown},
		{"ServerOutlivesABrokenRelay", brokenRelay},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, s) })
	}
	if server.Restart != nil {
		t.Run("RestartLosesNothingThatWasAcknowledged", func(t *testing.T) { restart(t, s) })
		t.Run("RestartKeepsCompletionAndFinish", func(t *testing.T) { restartAfterEnd(t, s) })
	}
}

type suite struct{ server Server }

// client returns a client with a connection of its own.
func (s *suite) client(t *testing.T) logsv1.LogServiceClient {
	t.Helper()
	options := s.server.DialOptions
	if options == nil {
		options = []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	}
	conn, err := grpc.NewClient(s.server.Addr, options...)
	if err != nil {
		t.Fatalf("dialing %s: %v", s.server.Addr, err)
	}
	t.Cleanup(func() { conn.Close() }) //nolint:errcheck // the test is over
	return logsv1.NewLogServiceClient(conn)
}

// worker registers a new worker and returns its UID.
func worker(t *testing.T, client logsv1.LogServiceClient) string {
	t.Helper()
	uid := "conformance-" + rand.Text()
	if _, err := client.RegisterWorker(deadline(t), &logsv1.RegisterWorkerRequest{Worker: describe(uid)}); err != nil {
		t.Fatalf("registering a worker: %v", err)
	}
	return uid
}

func describe(uid string) *logsv1.Worker {
	return &logsv1.Worker{
		Uid: uid, Namespace: "conformance", Name: "w-" + uid, TaskId: "conformance", Pool: "default", EventId: "1-0",
		Metadata: map[string]string{"repository": "ottoscaler"},
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func wantCode(t *testing.T, what string, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%s: got status %v (%v), want %v", what, got, err, want)
	}
}
