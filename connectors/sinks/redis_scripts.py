"""What Redis does in one step, in Lua: what is compared and what is written are never two requests.

Revisions are texts of 20 digits: a number of Lua's holds 53 bits, and one of ours up to 63.
"""

from __future__ import annotations

MISSING = "CDCMISSING"
_THERE = f"""
if redis.call('HEXISTS', KEYS[1], 'projection') == 0 then
  return redis.error_reply('{MISSING} the version is not there')
end
"""

# KEYS: record. ARGV: projection, fields that are looked up, what the names of the partitions' records end with (JSON). What the
# version is: as given, or as it was made.
PREPARE = """
if redis.call('HSETNX', KEYS[1], 'projection', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'lookups', ARGV[2], 'parts', ARGV[3])
end
return redis.call('HGETALL', KEYS[1])
"""

# KEYS: record, the partition's (the same where there is one), deleted. ARGV: owner, the epoch to be above.
CLAIM = f"""{_THERE}
-- No older epoch writes from here on, so what it deleted need not be remembered. First, for it makes room where there is none.
redis.call('UNLINK', KEYS[3])
local epoch = math.max(tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0'), tonumber(ARGV[2])) + 1
redis.call('HSET', KEYS[2], 'epoch', string.format('%d', epoch), 'owner', ARGV[1])
return {{redis.call('HGET', KEYS[1], 'lookups'), redis.call('HGETALL', KEYS[2])}}
"""

# KEYS: record, the partition's. ARGV: epoch, owner, then what is stored, name by name. 1: saved, 0: another one's.
SAVE = f"""{_THERE}
local stored = redis.call('HMGET', KEYS[2], 'epoch', 'owner')
if stored[1] ~= ARGV[1] or stored[2] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
return 1
"""

# KEYS: record, the partition's, revisions, deleted, lookups, then the key of each document. ARGV: epoch, what the keys of sets begin with,
# milliseconds that documents stay ('' for ever), then id, revision, text ('' to delete) and what it is looked up by (JSON, ''
# where the version has no sets) of each. The places of those that were written, from 0. Where there is no room, the first
# command that needs some is refused before anything was written.
WRITE = f"""{_THERE}
local function look_up(key, id, names)
  if names == '' then
    return
  end
  local left = {{}}
  for _, name in ipairs(cjson.decode(redis.call('HGET', KEYS[5], id) or '[]')) do
    left[name] = true
  end
  for _, name in ipairs(cjson.decode(names)) do
    redis.call('SADD', ARGV[2] .. name, key)
    left[name] = nil
  end
  for name in pairs(left) do
    redis.call('SREM', ARGV[2] .. name, key)
  end
  if names == '[]' then
    redis.call('HDEL', KEYS[5], id)
  else
    redis.call('HSET', KEYS[5], id, names)
  end
end
local applied = {{}}
if tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0') > tonumber(ARGV[1]) then
  return applied
end
for place = 0, #KEYS - 6 do
  local key, id, revision, text, names = KEYS[place + 6], unpack(ARGV, place * 4 + 4, place * 4 + 7)
  local stored = redis.call('HGET', KEYS[3], id)
  local known = stored or redis.call('HGET', KEYS[4], id)
  if not known or known < revision then
    if text == '' then
      if stored then
        redis.call('UNLINK', key)
        look_up(key, id, names)
        redis.call('HDEL', KEYS[3], id)
      end
      redis.call('HSET', KEYS[4], id, revision)
    else
      if ARGV[3] == '' then
        redis.call('SET', key, text)
      else
        redis.call('SET', key, text, 'PX', ARGV[3])
      end
      look_up(key, id, names)
      redis.call('HSET', KEYS[3], id, revision)
      if not stored then
        redis.call('HDEL', KEYS[4], id)
      end
    end
    applied[#applied + 1] = place
  end
end
return applied
"""

# KEYS: record, revisions, then the key of each document. ARGV: the ids. Their revisions, then their texts.
READ = f"""{_THERE}
local revisions = redis.call('HMGET', KEYS[2], unpack(ARGV))
return {{revisions, redis.call('MGET', unpack(KEYS, 3))}}
"""

# KEYS: record, pointer. ARGV: prefix.
SWITCH = f"""{_THERE}
redis.call('SET', KEYS[2], ARGV[1])
"""

# KEYS: pointer, then all records and what they have deleted. ARGV: prefix. From here on nobody writes or sees the version.
LEAVE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
redis.call('UNLINK', unpack(KEYS, 2))
"""
