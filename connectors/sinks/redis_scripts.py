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

# KEYS: record. ARGV: projection. Whose version it is: the one given, or another's that uses the same keys.
PREPARE = """
redis.call('HSETNX', KEYS[1], 'projection', ARGV[1])
return redis.call('HGET', KEYS[1], 'projection')
"""

# KEYS: record, deleted. ARGV: owner, the epoch to be above.
CLAIM = f"""{_THERE}
-- No older epoch writes from here on, so what it deleted need not be remembered. First, for it makes room where there is none.
redis.call('UNLINK', KEYS[2])
local epoch = math.max(tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0'), tonumber(ARGV[2])) + 1
redis.call('HSET', KEYS[1], 'epoch', string.format('%d', epoch), 'owner', ARGV[1])
return redis.call('HGETALL', KEYS[1])
"""

# KEYS: record. ARGV: epoch, owner, then what is stored, name by name. 1: saved, 0: another one's.
SAVE = f"""{_THERE}
local stored = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if stored[1] ~= ARGV[1] or stored[2] ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
"""

# KEYS: record, revisions, deleted, then the key of each document. ARGV: epoch, then id, revision and text of each, '' to
# delete. The places of those that were written, from 0. Where there is no room, the first command that needs some is
# refused before anything was written.
WRITE = f"""{_THERE}
local applied = {{}}
if tonumber(redis.call('HGET', KEYS[1], 'epoch') or '0') > tonumber(ARGV[1]) then
  return applied
end
for place = 0, #KEYS - 4 do
  local key, id, revision, text = KEYS[place + 4], ARGV[place * 3 + 2], ARGV[place * 3 + 3], ARGV[place * 3 + 4]
  local stored = redis.call('HGET', KEYS[2], id)
  local known = stored or redis.call('HGET', KEYS[3], id)
  if not known or known < revision then
    if text == '' then
      if stored then
        redis.call('UNLINK', key)
        redis.call('HDEL', KEYS[2], id)
      end
      redis.call('HSET', KEYS[3], id, revision)
    else
      redis.call('SET', key, text)
      redis.call('HSET', KEYS[2], id, revision)
      if not stored then
        redis.call('HDEL', KEYS[3], id)
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

# KEYS: record, deleted, pointer. ARGV: prefix. From here on nobody writes or sees the version.
LEAVE = """
if redis.call('GET', KEYS[3]) == ARGV[1] then
  redis.call('DEL', KEYS[3])
end
redis.call('UNLINK', KEYS[1], KEYS[2])
"""
