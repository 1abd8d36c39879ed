package stream

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

// recordScript writes results, then acknowledges. Redis carries it out as one, and it
// stops at the first thing that Redis refuses: an entry is acknowledged only when its
// result is written. It returns how many results it has written, and how many entries
// were pending, or why it stopped.
//
// The results are trimmed once, and not with each XADD, which would take Redis a sixth
// more time for all of it. A script takes Redis less time than the same commands in
// MULTI, and this process a quarter: what is the same in each of them is sent once.
//
// An event that gives something to later ones (see [GivenKey]) is acknowledged last, and
// only while it is ours: whoever has it now carries out all of it.
//
// ARGV is the group, the length of the results stream, how many letters were written
// before, how many results follow, how many IDs to acknowledge, and the consumer; then of
// each result its eight values, whether the event is to be reported as accepted before,
// the number of names and values of its details, and these; then the IDs to acknowledge;
// then of each event that gives something its ID, twice the number of those that it gives
// to, and of each of them its ID and how much.
const recordScript = `
local events, results, dead, given = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local pcall = redis.pcall
local group, length, written = ARGV[1], ARGV[2], tonumber(ARGV[4])
if ARGV[3] ~= '0' and redis.call('TYPE', dead).ok ~= 'stream' then
	return {0, 'WRONGTYPE the dead letters were refused'}
end
local at = 7
for i = 1, written do
	local id, kind, task, pool = ARGV[at], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
	local last, reply = at + 9 + ARGV[at + 9], nil
	if ARGV[at + 8] == '1' then
		reply = pcall('XADD', results, '*', 'event_id', id, 'status', 'accepted',
			'reason', '', 'message', '', 'type', kind, 'task_id', task, 'pool', pool, 'attempts', '0')
	end
	if type(reply) ~= 'table' then
		reply = pcall('XADD', results, '*', 'event_id', id, 'status', ARGV[at + 1],
			'reason', ARGV[at + 2], 'message', ARGV[at + 3], 'type', kind, 'task_id', task, 'pool', pool,
			'attempts', ARGV[at + 7], unpack(ARGV, at + 10, last))
	end
	if type(reply) == 'table' and reply.err then
		return {i - 1, reply.err}
	end
	at = last + 1
end
local reply = pcall('XTRIM', results, 'MAXLEN', '~', length)
if type(reply) == 'table' and reply.err then
	return {written, reply.err}
end
local acked, givers = 0, at + ARGV[5]
if at < givers then
	reply = pcall('XACK', events, group, unpack(ARGV, at, givers - 1))
	if type(reply) ~= 'table' then
		acked = reply
	end
	if type(reply) ~= 'table' and redis.call('TYPE', given).ok ~= 'none' then
		reply = pcall('HDEL', given, unpack(ARGV, at, givers - 1))
	end
	if type(reply) == 'table' then
		return {written, reply.err}
	end
end
at = givers
while at <= #ARGV do
	local id, last = ARGV[at], at + 1 + ARGV[at + 1]
	reply = pcall('XPENDING', events, group, id, id, 1, ARGV[6])
	if reply.err and not reply.err:find('NOGROUP', 1, true) then
		return {written, reply.err}
	end
	if reply.err or #reply > 0 then
		local before = ' ' .. id:gsub('%-', '%%-') .. '=%d+'
		for i = at + 2, last, 2 do
			local was = pcall('HGET', given, ARGV[i]) or ''
			if type(was) == 'string' then
				reply = pcall('HSET', given, ARGV[i], was:gsub(before, '') .. ' ' .. id .. '=' .. ARGV[i + 1])
			else
				reply = was
			end
			if type(reply) == 'table' then
				return {written, reply.err}
			end
		end
		reply = pcall('XACK', events, group, id)
		if type(reply) == 'table' then
			return {written, reply.err}
		end
		acked = acked + reply
	end
	at = last + 1
end
return {written, acked}
`

// A record is what is written to Redis at once.
type record struct {
	letters [][]string // names and values
	results []told
	acks    []*string // IDs
	givers  []giver
}

// giver is an event to acknowledge, and what it gives to others, by their IDs.
type giver struct {
	id    *string
	gives map[string]int
}

// told is a result, and whether it is the first of its event, which is then reported
// as accepted before.
type told struct {
	*scaleevent.Result
	first bool
}

// progress is how much of a record is written, as far as is known.
type progress struct{ letters, results, acks int }

// write writes a record in one transaction. It returns how much is written also with an
// error.
func (c *Consumer) write(ctx context.Context, rdb redis.Cmdable, r record) (done progress, err error) {
	// Pointers, because a text in an any is a copy in a place of its own.
	args := make([]any, 0, 6+10*len(r.results)+len(r.acks))
	args = append(args, c.cfg.Group, c.cfg.ResultsMaxLen, len(r.letters), len(r.results), len(r.acks), c.cfg.Consumer)
	for _, result := range r.results {
		args = append(args, &result.EventID, &result.Status, &result.Reason, &result.Message, &result.Type, &result.TaskID, &result.Pool,
			&result.Attempts, result.first, 2*len(result.Details))
		if len(result.Details) > 0 {
			for _, text := range flat(result.Details) {
				args = append(args, text)
			}
		}
	}
	for _, id := range r.acks {
		args = append(args, id)
	}
	for _, g := range r.givers {
		args = append(args, g.id, 2*len(g.gives))
		for to, n := range g.gives {
			args = append(args, to, n)
		}
	}
	keys := []string{c.cfg.Stream, c.cfg.Results, c.cfg.Dead, GivenKey(c.cfg.Stream, c.cfg.Group)}
	if len(r.letters) == 0 {
		err = done.read(rdb.Eval(ctx, recordScript, keys, args...))
		return done, err
	}
	// A letter may have more fields than a script can handle.
	added := make([]*redis.StringCmd, len(r.letters))
	var script *redis.Cmd
	cmds, err := rdb.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		for i, letter := range r.letters {
			added[i] = tx.XAdd(ctx, &redis.XAddArgs{Stream: c.cfg.Dead, Values: letter})
		}
		script = tx.Eval(ctx, recordScript, keys, args...)
		return nil
	})
	for done.letters < len(added) && added[done.letters].Val() != "" {
		done.letters++
	}
	if err != nil {
		return done, cause(cmds, err)
	}
	err = done.read(script)
	return done, err
}

// read reads the reply of recordScript.
func (p *progress) read(script *redis.Cmd) error {
	reply, err := script.Slice()
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was written
	}
	if len(reply) != 2 {
		return fmt.Errorf("the script answered %v", reply)
	}
	results, _ := reply[0].(int64) // the script has no others
	p.results = int(results)
	switch said := reply[1].(type) {
	case int64:
		p.acks = int(said)
		return nil
	default:
		return refusedBy(fmt.Sprint(said))
	}
}

// cause returns why a transaction was discarded: Redis only says that it was.
func cause(cmds []redis.Cmder, err error) error {
	if !redis.HasErrorPrefix(err, "EXECABORT") {
		return err
	}
	for _, cmd := range cmds {
		if why := cmd.Err(); why != nil && !redis.HasErrorPrefix(why, "EXECABORT") {
			return why
		}
	}
	return err
}

// A refusal is an error that a command within a script was answered with.
type refusal string

// refusedBy makes a refusal. Redis words a missing right in another way than outside
// of a script: in one way before 7.2, in the other since.
func refusedBy(reply string) refusal {
	reply = strings.TrimPrefix(reply, "ERR ")
	if strings.HasPrefix(reply, "The user executing the script can't") || strings.HasPrefix(reply, "ACL failure in script: ") {
		reply = "NOPERM " + reply
	}
	return refusal(reply)
}

var _ redis.Error = refusal("")

// Error implements the error interface.
func (r refusal) Error() string { return string(r) }

// RedisError marks it as a reply of Redis.
func (refusal) RedisError() {}

// resultValues lays out the fields of a result as XADD wants them, in a fixed order.
func resultValues(r scaleevent.Result) []string {
	values := []string{
		scaleevent.ResultEventID, r.EventID, scaleevent.ResultStatus, r.Status, scaleevent.ResultReason, r.Reason,
		scaleevent.ResultMessage, r.Message, scaleevent.ResultType, r.Type, scaleevent.ResultTaskID, r.TaskID,
		scaleevent.ResultPool, r.Pool, scaleevent.ResultAttempts, strconv.Itoa(r.Attempts),
	}
	return append(values, flat(r.Details)...)
}

// flat lays out fields as XADD wants them, in a fixed order.
func flat(fields map[string]string) []string {
	values := make([]string, 0, 2*len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		values = append(values, name, fields[name])
	}
	return values
}
