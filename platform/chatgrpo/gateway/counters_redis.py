"""Counters of limits in Redis, for all replicas of a cluster."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from chatgrpo.gateway.counters import LEASE_S
from chatgrpo.gateway.limits import SLOTS, Meter, Reading, Verdict, decide, slot_of
from chatgrpo.state.redis_connection import open_pool, translated

TAKE: Final = """
-- KEYS: one counter a meter. ARGV: lease, lease seconds, slots, then for each meter: window_s, limit, cost, shadow.
-- Time is the server's, so that replicas with clocks that differ count the same window.
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local num = tonumber(ARGV[3])
local admitted = 1
local answer = {}
for i, key in ipairs(KEYS) do
  local a = 4 + (i - 1) * 4
  local window, limit, cost = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local used, oldest = 0, 0
  if window == 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    used = redis.call('ZCARD', key)
    oldest = math.floor(now)
  else
    local first = math.floor(now * num / window) - num
    oldest = first
    local fields = redis.call('HGETALL', key)
    local seen = nil
    for j = 1, #fields, 2 do
      local slot, n = tonumber(fields[j]), tonumber(fields[j + 1])
      if slot < first then
        redis.call('HDEL', key, fields[j])
      elseif n > 0 then
        used = used + n
        if not seen or slot < seen then seen = slot end
      end
    end
    oldest = seen or first
  end
  if used + cost > limit and ARGV[a + 3] == '0' then admitted = 0 end
  answer[#answer + 1] = used
  answer[#answer + 1] = oldest
end
if admitted == 1 then
  for i, key in ipairs(KEYS) do
    local a = 4 + (i - 1) * 4
    local window = tonumber(ARGV[a])
    if window == 0 then
      redis.call('ZADD', key, now + tonumber(ARGV[2]), ARGV[1])
      redis.call('PEXPIRE', key, math.ceil(tonumber(ARGV[2]) * 1000))
    else
      redis.call('HINCRBY', key, math.floor(now * num / window), ARGV[a + 2])
      redis.call('PEXPIRE', key, math.ceil(window * 2000))
    end
  end
end
return {tostring(now), answer}
"""


class RedisCounters:
    """Exact for all replicas of a cluster: one script decides and counts."""

    def __init__(self, url: str, *, prefix: str = "chatgrpo:limit:") -> None:
        self._redis: Any = Redis(connection_pool=open_pool(url))
        self._prefix = prefix
        self._script = self._redis.register_script(TAKE)

    async def take(self, meters: Sequence[Meter], *, lease: str) -> Verdict:
        args: list[Any] = [lease, LEASE_S, SLOTS]
        for meter in meters:
            args += [meter.window_s, meter.limit, meter.cost, int(meter.is_shadow)]
        now, flat = await self._ask(self._script(keys=[self._prefix + meter.key for meter in meters], args=args))
        readings = [Reading(used=used, oldest=oldest) for used, oldest in zip(flat[::2], flat[1::2], strict=True)]
        return decide(meters, readings, now=float(now), lease=lease)

    async def give_back(self, meter: Meter, amount: int, *, taken_at: float) -> None:
        await self._ask(self._redis.hincrby(self._prefix + meter.key, slot_of(taken_at, meter.window_s), -amount))

    async def release(self, meters: Sequence[Meter], *, lease: str) -> None:
        for meter in meters:
            if meter.window_s == 0:
                await self._ask(self._redis.zrem(self._prefix + meter.key, lease))

    async def close(self) -> None:
        await self._redis.aclose(close_connection_pool=True)

    async def _ask(self, answer: Awaitable[Any]) -> Any:
        with translated(self._prefix):
            return await answer
