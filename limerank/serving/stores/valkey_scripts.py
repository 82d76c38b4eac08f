"""Scripts of a Valkey event store, in Lua: each change is one script, and therefore atomic.

:mod:`limerank.serving.stores.valkey_layout` lists the keys. A script takes keys of one bucket.
"""

DIGITS = """
local function digits(number) return string.format('%.0f', number) end
"""
# Of a user: u, t, e, c; KEYS: names, sums. A new user gets the random number `birth`. If the list
# of changes is incomplete, it begins again from here. Sets count and dropped.
BORN = """
if redis.call('HSETNX', u, 'born', birth) == 1 then
  redis.call('HSET', u, 'count', 0, 'dropped', 0, 'features', '{}', 'from', 0, 'listed', 0)
  redis.call('DEL', c)
  redis.call('ZADD', KEYS[1], 0, user)
  redis.call('HINCRBY', KEYS[2], 'users', 1)
end
local meta = redis.call('HMGET', u, 'count', 'dropped', 'listed')
local count, dropped = tonumber(meta[1]), tonumber(meta[2])
if meta[3] ~= meta[1] then
  redis.call('HSET', u, 'from', meta[1])
  redis.call('DEL', c)
end
"""
# Drops the oldest events of a user who has more than `most`; sets held, before, count and dropped.
TRIMMED = """
local held = redis.call('ZCARD', t)
local before = held
if most > 0 and held > most then
  local number = math.min(held - most, trim)
  local popped = redis.call('ZPOPMIN', t, number)
  for p = 1, #popped, 2 do redis.call('HDEL', e, popped[p]) end
  held, count = held - number, count + 1
  dropped = count
end
"""
# Writes count and dropped. Shortens the list to about twice the number of events.
ENDED = """
redis.call('HSET', u, 'count', digits(count), 'dropped', digits(dropped), 'listed', digits(count))
if redis.call('LLEN', c) > 2 * held + 64 then
  redis.call('LTRIM', c, -held - 1, -1)
  local first = redis.call('LPOP', c)
  redis.call('HSET', u, 'from', string.sub(first, 1, string.find(first, '|', 1, true) - 1))
end
redis.call('HINCRBY', KEYS[2], 'events', held - before)
"""
# KEYS: names, sums, then u:, t:, e:, c: of each user. ARGV: most (0: any number), trim, then of
# each user: user, birth, number of events, then id, time and bytes of each event, in their order.
# Returns the outcome of each event: 0 duplicate, 1 accepted, 2 expired.
APPEND = (
    DIGITS
    + """
local most, trim, at, out = tonumber(ARGV[1]), tonumber(ARGV[2]), 3, {}
for k = 3, #KEYS, 4 do
local u, t, e, c = KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
local user, birth, last = ARGV[at], ARGV[at + 1], at + 3 * tonumber(ARGV[at + 2])
"""
    + BORN
    + TRIMMED
    + """
for p = at + 3, last, 3 do
  local id, outcome = ARGV[p], 0
  if redis.call('HEXISTS', e, id) == 0 then
    redis.call('ZADD', t, ARGV[p + 1], id)
    outcome, held = 1, held + 1
    if most > 0 and held > most then
      local oldest = redis.call('ZPOPMIN', t)[1]
      held = held - 1
      if oldest == id then
        outcome = 2
      else
        redis.call('HDEL', e, oldest)
        dropped = count + 1
      end
    end
    if outcome == 1 then
      count = count + 1
      redis.call('HSET', e, id, digits(count) .. '|' .. ARGV[p + 2])
      redis.call('RPUSH', c, digits(count) .. '|' .. id)
    end
  end
  out[#out + 1] = outcome
end
"""
    + ENDED
    + """
at = last + 3
end
return out
"""
)
# KEYS: names, sums, u:, t:, e:, c:. ARGV: most, trim. Does nothing for an unknown user.
TRIM_USER = (
    DIGITS
    + """
local most, trim = tonumber(ARGV[1]), tonumber(ARGV[2])
local u, t, e, c = KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local birth, user = '0', ''
if redis.call('EXISTS', u) == 0 then return 0 end
"""
    + BORN
    + TRIMMED
    + ENDED
    + """
return before - held
"""
)
# KEYS: names, sums, u:, c:. ARGV: user, birth, features.
FEATURES = (
    DIGITS
    + """
local u, c, user, birth = KEYS[3], KEYS[4], ARGV[1], ARGV[2]
"""
    + BORN
    + """
count = digits(count + 1)
redis.call('HSET', u, 'features', ARGV[3], 'count', count, 'listed', count)
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
# KEYS: t:, e: or x:, y:. ARGV: a command that lists members by score, first, last, offset, limit.
# Returns id, time and bytes of each.
FOUND = """
local out = {}
local found = redis.call(
  ARGV[1], KEYS[1], ARGV[2], ARGV[3], 'WITHSCORES', 'LIMIT', ARGV[4], ARGV[5])
for at = 1, #found, 2 do
  local value = redis.call('HGET', KEYS[2], found[at])
  if value then
    out[#out + 1] = found[at]
    out[#out + 1] = found[at + 1]
    out[#out + 1] = value
  end
end
return out
"""
# KEYS: names, sums, shown, then u:, c:, x:, y: of each exposure. ARGV: most, then user, birth,
# ranking, time and bytes of each exposure.
# Returns the outcome of each: 0 duplicate, 1 accepted, 2 expired.
SHOW = (
    DIGITS
    + """
local out, most, at = {}, tonumber(ARGV[1]), 2
for k = 4, #KEYS, 4 do
local u, c, x, y = KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3]
local user, birth, id, outcome = ARGV[at], ARGV[at + 1], ARGV[at + 2], 0
"""
    + BORN
    + """
if redis.call('HEXISTS', y, id) == 0 then
  outcome = 1
  local change = digits(redis.call('HINCRBY', KEYS[2], 'shown', 1))
  redis.call('ZADD', x, ARGV[at + 3], id)
  redis.call('HSET', y, id, ARGV[at + 4])
  redis.call('ZADD', KEYS[3], change, id .. '|' .. user)
  while redis.call('ZCARD', x) > most do
    local oldest = redis.call('ZPOPMIN', x)[1]
    redis.call('HDEL', y, oldest)
    redis.call('ZREM', KEYS[3], oldest .. '|' .. user)
    if oldest == id then outcome = 2 end
  end
end
out[#out + 1] = outcome
at = at + 5
end
return out
"""
)
# KEYS: names, sums, shown, u:, t:, e:, s:, c:, x:, y:. ARGV: user.
DELETE = """
if redis.call('EXISTS', KEYS[4]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[2], 'users', -1)
redis.call('HINCRBY', KEYS[2], 'events', 0 - redis.call('ZCARD', KEYS[5]))
redis.call('ZREM', KEYS[1], ARGV[1])
for _, id in ipairs(redis.call('ZRANGE', KEYS[9], 0, -1)) do
  redis.call('ZREM', KEYS[3], id .. '|' .. ARGV[1])
end
redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10])
return 1
"""
# KEYS: u:, s:. ARGV: born, count, kind, bytes. Returns how many states the user has; 0: refused.
PUT_STATE = """
local meta = redis.call('HMGET', KEYS[1], 'born', 'count')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then return 0 end
local number = string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'stated', 1))
redis.call('HSET', KEYS[2], ARGV[3], number .. '|' .. ARGV[4])
return redis.call('HLEN', KEYS[2])
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
# KEYS: identity, lineage. ARGV: id of the server, whether it was promoted, a new identity.
# A server that was promoted since the identity was made gets a new one, of the same beginning.
IDENTITY = """
local lineage = redis.call('GET', KEYS[2])
redis.call('SET', KEYS[1], ARGV[3], 'NX')
if lineage ~= ARGV[1] then
  if lineage and ARGV[2] == '1' then
    local store = string.match(redis.call('GET', KEYS[1]), '^[^.]*')
    redis.call('SET', KEYS[1], store .. '.' .. ARGV[3])
  end
  redis.call('SET', KEYS[2], ARGV[1])
end
return redis.call('GET', KEYS[1])
"""
