"""Scripts of a Valkey event store, in Lua: each change is one script, and therefore atomic.

Keys, after the prefix (``USER`` is the external id)::

    format              version of this layout
    ids                 set once all users' ids are in their one form
    users, events       set of users; number of events
    u:USER              hash: born, count, dropped, features (JSON), from, listed
    t:USER, e:USER      sorted set: event id by time; hash: event id -> COUNT|packed event
    c:USER              list: COUNT|event id, in the order of the changes, of those since ``from``
    x:USER, y:USER      sorted set: ranking by time; hash: ranking -> packed exposure
    shown, showing      sorted set: RANKING|USER by the change that stored it; number of changes
    s:USER              hash: kind -> born, count, length of fingerprint, fingerprint, state
    items, changes      hash: item -> JSON, empty where removed; sorted set: item by change
    change              number of changes of items
    erase               when a user was first deleted after the server last rewrote its log
    identity            random text that differs between stores

``c:USER`` contains all events accepted since the change ``from`` if ``listed`` equals ``count``.
Versions of limerank that do not maintain the list change ``count`` alone; then it begins again.
"""

# KEYS: u:, t:, e:, c:, users, events. A new user gets the random number ARGV[2] as its birth. If
# the list of changes is incomplete, it begins again from here.
BORN = """
if redis.call('HSETNX', KEYS[1], 'born', ARGV[2]) == 1 then
  redis.call('HSET', KEYS[1], 'count', 0, 'dropped', 0, 'features', '{}', 'from', 0, 'listed', 0)
  redis.call('DEL', KEYS[4])
  redis.call('SADD', KEYS[5], ARGV[1])
end
local meta = redis.call('HMGET', KEYS[1], 'count', 'dropped', 'listed')
local count, dropped = tonumber(meta[1]), tonumber(meta[2])
if meta[3] ~= meta[1] then
  redis.call('HSET', KEYS[1], 'from', meta[1])
  redis.call('DEL', KEYS[4])
end
local function digits(number) return string.format('%.0f', number) end
"""
# Drops the oldest events of a user who has more than `most`; sets held, count and dropped.
TRIMMED = """
if most > 0 and held > most then
  local number = math.min(held - most, trim)
  local popped = redis.call('ZPOPMIN', KEYS[2], number)
  for at = 1, #popped, 2 do redis.call('HDEL', KEYS[3], popped[at]) end
  held, count = held - number, count + 1
  dropped = count
end
"""
# Writes count and dropped. Shortens the list to about twice the number of events.
ENDED = """
redis.call('HSET', KEYS[1], 'count', digits(count), 'dropped', digits(dropped),
           'listed', digits(count))
if redis.call('LLEN', KEYS[4]) > 2 * held + 64 then
  redis.call('LTRIM', KEYS[4], -held - 1, -1)
  local first = redis.call('LPOP', KEYS[4])
  redis.call('HSET', KEYS[1], 'from', string.sub(first, 1, string.find(first, '|', 1, true) - 1))
end
redis.call('INCRBY', KEYS[6], held - before)
"""
# ARGV: user, born, most (0: any number), trim, then id, time and bytes of each event, in their
# order. Returns the outcome of each: 0 duplicate, 1 accepted, 2 expired.
APPEND = (
    BORN
    + """
local held = redis.call('ZCARD', KEYS[2])
local before, most, trim, out = held, tonumber(ARGV[3]), tonumber(ARGV[4]), {}
"""
    + TRIMMED
    + """
for at = 5, #ARGV, 3 do
  local id, outcome = ARGV[at], 0
  if redis.call('HEXISTS', KEYS[3], id) == 0 then
    redis.call('ZADD', KEYS[2], ARGV[at + 1], id)
    outcome, held = 1, held + 1
    if most > 0 and held > most then
      local oldest = redis.call('ZPOPMIN', KEYS[2])[1]
      held = held - 1
      if oldest == id then
        outcome = 2
      else
        redis.call('HDEL', KEYS[3], oldest)
        dropped = count + 1
      end
    end
    if outcome == 1 then
      count = count + 1
      redis.call('HSET', KEYS[3], id, digits(count) .. '|' .. ARGV[at + 2])
      redis.call('RPUSH', KEYS[4], digits(count) .. '|' .. id)
    end
  end
  out[#out + 1] = outcome
end
"""
    + ENDED
    + """
return out
"""
)
# ARGV: user, born, most, trim. Does nothing for an unknown user.
TRIM_USER = (
    """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
"""
    + BORN
    + """
local held = redis.call('ZCARD', KEYS[2])
local before, most, trim = held, tonumber(ARGV[3]), tonumber(ARGV[4])
"""
    + TRIMMED
    + ENDED
    + """
return before - held
"""
)
# ARGV: user, born, features.
FEATURES = (
    BORN
    + """
count = digits(count + 1)
redis.call('HSET', KEYS[1], 'features', ARGV[3], 'count', count, 'listed', count)
"""
)
# KEYS: u:, t:, e:, c:. ARGV: born and count of the version after which events are wanted, or empty;
# how many events may be read at once.
# Returns nothing, or born, count, features, whether these are all events, how many are stored,
# whether they are too many to read at once, then id, time and bytes of each.
HELD = """
local meta = redis.call('HMGET', KEYS[1], 'born', 'count', 'features', 'dropped', 'from', 'listed')
if not meta[1] then return false end
local count, after = tonumber(meta[2]), tonumber(ARGV[2])
local some = ARGV[1] == meta[1] and tonumber(meta[4]) <= after and after <= count
local held = redis.call('ZCARD', KEYS[2])
local out = {meta[1], meta[2], meta[3], some and '0' or '1', held, '0'}
local function put(id, time, value, change)
  local bar = value and string.find(value, '|', 1, true)
  if not bar then return end
  local number = tonumber(string.sub(value, 1, bar - 1))
  if number == (change or number) and (not some or number > after) then
    out[#out + 1] = id
    out[#out + 1] = time
    out[#out + 1] = string.sub(value, bar + 1)
  end
end
if some and meta[6] == meta[2] and tonumber(meta[5]) <= after then
  if after < count then
    for _, entry in ipairs(redis.call('LRANGE', KEYS[4], after - count, -1)) do
      local bar = string.find(entry, '|', 1, true)
      local change, id = tonumber(string.sub(entry, 1, bar - 1)), string.sub(entry, bar + 1)
      if change > after then
        put(id, redis.call('ZSCORE', KEYS[2], id), redis.call('HGET', KEYS[3], id), change)
      end
    end
  end
elseif held > tonumber(ARGV[3]) then
  out[6] = '1'
else
  local ids = redis.call('ZRANGE', KEYS[2], 0, -1, 'WITHSCORES')
  for at = 1, #ids, 2 do
    put(ids[at], ids[at + 1], redis.call('HGET', KEYS[3], ids[at]))
  end
end
return out
"""
# KEYS: u:, t:, e:, c:, users, events, x:, y:, shown, showing. ARGV: user, born, most, then ranking,
# time and bytes of each exposure. Returns the outcome of each: 0 duplicate, 1 accepted, 2 expired.
SHOW = (
    BORN
    + """
local out, most = {}, tonumber(ARGV[3])
for at = 4, #ARGV, 3 do
  local id, outcome = ARGV[at], 0
  if redis.call('HEXISTS', KEYS[8], id) == 0 then
    outcome = 1
    local change = digits(redis.call('INCR', KEYS[10]))
    redis.call('ZADD', KEYS[7], ARGV[at + 1], id)
    redis.call('HSET', KEYS[8], id, ARGV[at + 2])
    redis.call('ZADD', KEYS[9], change, id .. '|' .. ARGV[1])
    while redis.call('ZCARD', KEYS[7]) > most do
      local oldest = redis.call('ZPOPMIN', KEYS[7])[1]
      redis.call('HDEL', KEYS[8], oldest)
      redis.call('ZREM', KEYS[9], oldest .. '|' .. ARGV[1])
      if oldest == id then outcome = 2 end
    end
  end
  out[#out + 1] = outcome
end
return out
"""
)
# KEYS: u:, t:, e:, s:, c:, x:, y:, shown, users, events, erase. ARGV: user, seconds since 1970.
DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('DECRBY', KEYS[10], redis.call('ZCARD', KEYS[2]))
redis.call('SREM', KEYS[9], ARGV[1])
for _, id in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
  redis.call('ZREM', KEYS[8], id .. '|' .. ARGV[1])
end
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
redis.call('SET', KEYS[11], ARGV[2], 'NX')
return 1
"""
# KEYS: u:, s:. ARGV: born, count, kind, bytes.
PUT_STATE = """
local meta = redis.call('HMGET', KEYS[1], 'born', 'count')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[3], ARGV[4])
return 1
"""
# KEYS: items, changes, change. ARGV: of each item id and JSON.
PUT_ITEMS = """
local change = tonumber(redis.call('GET', KEYS[3]) or '0')
for at = 1, #ARGV, 2 do
  change = change + 1
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
  redis.call('ZADD', KEYS[2], change, ARGV[at])
end
redis.call('SET', KEYS[3], string.format('%.0f', change))
return change
"""
# KEYS: items, changes, change. ARGV: since, limit (-1: none).
# Returns the last change that is included, then id and JSON of each item.
ITEMS = """
local found = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES',
                         'LIMIT', 0, ARGV[2])
local out = {redis.call('GET', KEYS[3]) or '0'}
if tonumber(ARGV[2]) >= 0 and #found >= 2 * tonumber(ARGV[2]) then
  out[1] = found[#found] or ARGV[1]
end
for at = 1, #found, 2 do
  out[#out + 1] = found[at]
  out[#out + 1] = redis.call('HGET', KEYS[1], found[at])
end
return out
"""
