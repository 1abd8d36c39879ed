package stream

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// maxEnds is how many ends of workers are remembered, so that each is stored once
// however often a scaler that restarts tells it: those that were told last. Workers
// that are told again are those that are still held, which are far fewer.
const maxEnds = 100_000

// endsKey is the key of the sorted set of them, by when each was told last. It has the
// hash tag of the results, if they have one.
func (c *Consumer) endsKey() string { return c.cfg.Results + ":ends" }

// addEnd adds the result of a worker's end, unless that of the same ID was added
// before. It reports whether it did.
func (c *Consumer) addEnd(ctx context.Context, id string, result scaleevent.Result) (added bool, err error) {
	if id == "" {
		return true, c.replicated(ctx, func(rdb redis.Cmdable) (bool, error) { return true, c.addResult(ctx, rdb, result).Err() })
	}
	args := []any{id, time.Now().UnixMilli(), maxEnds, c.cfg.ResultsMaxLen}
	for _, value := range resultValues(result) {
		args = append(args, value)
	}
	err = c.replicated(ctx, func(rdb redis.Cmdable) (bool, error) {
		n, err := rdb.Eval(ctx, addEndScript, []string{c.cfg.Results, c.endsKey()}, args...).Int()
		added = n == 1
		return added, err
	})
	return added, err
}

// addEndScript looks and adds in one step, so that no crash and no lost reply comes
// between. It looks first, because what fails after the first write stays half done.
const addEndScript = `
local known = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not known then
	redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 5))
end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[3])
return known and 0 or 1
`
