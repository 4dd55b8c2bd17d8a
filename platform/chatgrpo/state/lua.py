"""The Redis store's atomic operations: one Lua script each, run by the server without interruption.

KEYS name what is surely touched; the owner's index depends on what is stored, so its name is made in the script. That
needs a single Redis (or one behind Sentinel), not Redis Cluster.
"""

from __future__ import annotations

from typing import Final

APPEND: Final = """
-- KEYS: head, records, ids, expiry, seq. ARGV: based_on, version, data, owner, expires_at or '', id, name,
-- owners' index prefix, news channel, record...
local known = redis.call('HMGET', KEYS[1], 's', 'v', 'o')
if tonumber(known[1] or '0') ~= tonumber(ARGV[1]) then
  return {0, tonumber(known[2] or '-1')}
end
local seq = redis.call('INCR', KEYS[5])
redis.call('HSET', KEYS[1], 's', seq, 'v', ARGV[2], 'd', ARGV[3], 'o', ARGV[4], 'e', ARGV[5])
for i = 10, #ARGV do
  redis.call('RPUSH', KEYS[2], ARGV[i])
end
if known[3] and known[3] ~= ARGV[4] then
  redis.call('ZREM', ARGV[8] .. known[3], ARGV[6])
end
redis.call('ZADD', KEYS[3], 0, ARGV[6])
redis.call('ZADD', ARGV[8] .. ARGV[4], 0, ARGV[6])
if ARGV[5] == '' then
  redis.call('ZREM', KEYS[4], ARGV[7])
else
  redis.call('ZADD', KEYS[4], ARGV[5], ARGV[7])
end
redis.call('PUBLISH', ARGV[9], seq .. ' ' .. ARGV[7])
return {seq, tonumber(ARGV[2])}
"""

TAIL: Final = """
-- KEYS: head, records. ARGV: count, unless. The records are left out when the caller has them.
local head = redis.call('HMGET', KEYS[1], 'v', 'd', 'o', 'e', 's')
if not head[1] then
  return {}
end
if head[5] == ARGV[2] or tonumber(ARGV[1]) < 1 then
  return {head, {}}
end
return {head, redis.call('LRANGE', KEYS[2], -tonumber(ARGV[1]), -1)}
"""

DELETE: Final = """
-- KEYS: head, records, ids, expiry, seq. ARGV: id, name, owners' index prefix, news channel.
local owner = redis.call('HGET', KEYS[1], 'o')
if not owner then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', ARGV[3] .. owner, ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[2])
local seq = redis.call('INCR', KEYS[5])
redis.call('PUBLISH', ARGV[4], seq .. ' ' .. ARGV[2])
return seq
"""

CUT: Final = """
-- KEYS: index of ids, seq. ARGV: prefix of heads.
local ids = redis.call('ZRANGE', KEYS[1], 0, -1)
local found = {redis.call('GET', KEYS[2]) or '0'}
for _, id in ipairs(ids) do
  found[#found + 1] = id
  found[#found + 1] = redis.call('HGET', ARGV[1] .. id, 'v')
end
return found
"""
