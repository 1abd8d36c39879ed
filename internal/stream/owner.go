package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/internal/backoff"
)

// An Owner is the installation that a consumer group belongs to. Main pods of one
// installation share it.
type Owner struct {
	// User is the developer whose installation it is, or empty.
	User string `json:"user,omitempty"`
	// Instance is the installation's ID within its namespace.
	Instance string `json:"instance"`
	// Namespace of the installation, or empty.
	Namespace string `json:"namespace,omitempty"`
}

// A claim is what the owner's key holds.
type claim struct {
	Owner
	Since time.Time `json:"since"`
}

// A ForeignGroupError says that a consumer group belongs to another installation.
// Two that shared it would each carry out half of the events.
type ForeignGroupError struct {
	stream, group, key string
	claim              claim
}

// Error tells whose the group is, and what to do.
func (e *ForeignGroupError) Error() string {
	whose := fmt.Sprintf("instance %s", e.claim.Instance)
	if e.claim.User != "" {
		whose = fmt.Sprintf("user %s, %s", e.claim.User, whose)
	}
	if e.claim.Namespace != "" {
		whose += " in namespace " + e.claim.Namespace
	}
	return fmt.Sprintf("REDIS_CONSUMER_GROUP: group %s of stream %s belongs to another installation (%s, since %s): set another group, stream or Redis, or, if that installation is gone, DEL %s in Redis",
		e.group, e.stream, whose, e.claim.Since.Format(time.RFC3339), e.key)
}

// OwnerKey is the key that tells whose a consumer group is.
func OwnerKey(stream, group string) string { return stream + ":owner:" + group }

// claimGroup makes the group ours, or returns a [ForeignGroupError] if it belongs
// to somebody else. Who asks first, owns it, until the key is deleted.
func (c *Consumer) claimGroup(ctx context.Context) error {
	if c.cfg.Owner == (Owner{}) {
		return nil
	}
	// Reading comes first: a Redis whose memory is full lets nobody write, not even
	// what is there already.
	if err := c.checkClaim(ctx); !errors.Is(err, redis.Nil) {
		return err
	}
	value, err := json.Marshal(claim{c.cfg.Owner, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return fmt.Errorf("claiming group %s: %w", c.cfg.Group, err)
	}
	ours, err := c.rdb.SetNX(ctx, OwnerKey(c.cfg.Stream, c.cfg.Group), value, 0).Result()
	if err != nil || ours {
		return wrapClaim(c.cfg.Group, err)
	}
	return c.checkClaim(ctx) // somebody was quicker
}

// checkClaim returns nil if the group is ours, and redis.Nil, wrapped, if it is nobody's.
func (c *Consumer) checkClaim(ctx context.Context) error {
	key := OwnerKey(c.cfg.Stream, c.cfg.Group)
	there, err := c.rdb.Get(ctx, key).Bytes()
	if err != nil {
		return wrapClaim(c.cfg.Group, err)
	}
	var found claim
	if err := json.Unmarshal(there, &found); err != nil {
		found.Instance = fmt.Sprintf("unknown: key %s holds %q", key, there)
	}
	if found.Owner != c.cfg.Owner {
		return &ForeignGroupError{c.cfg.Stream, c.cfg.Group, key, found}
	}
	return nil
}

func wrapClaim(group string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("claiming group %s: %w", group, err)
}

// awaitClaim claims the group before anything else is done with it, as soon as
// Redis answers.
func (c *Consumer) awaitClaim(ctx context.Context) error {
	for range backoff.Default.Attempts(ctx) {
		err := c.claimGroup(ctx)
		if err == nil || isForeign(err) {
			return err
		}
		if ctx.Err() == nil {
			c.link.failed("reading events", err)
		}
	}
	return nil // told to stop
}

func isForeign(err error) bool {
	var foreign *ForeignGroupError
	return errors.As(err, &foreign)
}
