"""The protocol's three steps as Lua, because each must be atomic in Redis; ``core.cacheproto`` says what they decide.

None of them runs for a hit. All keys of a call have one hash tag. A key that holds something else than a string is
nobody's value: it is treated as absent and overwritten.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

LEASE: Final = """
local b = redis.pcall('GET', KEYS[1])
local token, epoch, lease_ms, term = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[5]
if type(b) ~= 'string' then b = nil end
if b and string.sub(b, 1, 2) == 'P|' then return {'Q'} end
local at = b and tonumber(string.match(b, '^B|(%d+)|')) or -1
if at > epoch then return {'E'} end
if at < epoch or string.sub(b, -#term) ~= term then
  redis.call('SET', KEYS[1], 'P|' .. token, 'PX', ARGV[4])
  return {'P'}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local out = {b}
for i = 2, #KEYS do
  local v = redis.pcall('GET', KEYS[i])
  if type(v) ~= 'string' then v = nil end
  local held, xids, e = false, '', epoch
  if v then
    local tok, dl, ep, xs = string.match(v, '^M|([^|]*)|(%d+)|(%d+)|(.*)$')
    if not tok then
      if string.sub(v, -#term) == term and v ~= ARGV[i + 4] then held = 'V' .. v end
    else
      e = tonumber(ep)
      if e > epoch then held = 'E'
      elseif tok ~= '' and tonumber(dl) > now then held = 'W'
      elseif e == epoch then xids = xs end
    end
  end
  if held then
    out[i] = held
  else
    local m = 'M|' .. token .. '|' .. string.format('%.0f', now + lease_ms) .. '|' .. ARGV[2] .. '|' .. xids
    if xids == '' then redis.call('SET', KEYS[i], m, 'PX', ARGV[3]) else redis.call('SET', KEYS[i], m, 'KEEPTTL') end
    out[i] = 'L' .. m
  end
end
return out
"""
"""KEYS barrier, key…; ARGV token, epoch, lease ms, ms of a pending barrier, term, outdated value of each key (or empty).

Answers {'P'}, {'Q'} or {'E'} for the barrier; else {barrier, and for each key 'L' marker | 'V' value | 'W' | 'E'}.
"""

MARK: Final = """
local epoch = tonumber(ARGV[2])
for i = 1, #KEYS do
  local v = redis.pcall('GET', KEYS[i])
  local xids, e = '', epoch
  if type(v) == 'string' then
    local ep, xs = string.match(v, '^M|[^|]*|%d+|(%d+)|(.*)$')
    if ep then
      e = tonumber(ep)
      if e >= epoch then xids = xs end
    end
  end
  local m
  if e > epoch then
    m = 'M||0|' .. string.format('%.0f', e) .. '|' .. xids
  else
    if string.sub(xids, 1, 1) == '^' then
      if tonumber(ARGV[1]) > tonumber(string.sub(xids, 2)) then xids = '^' .. ARGV[1] end
    else
      local n, top, known = 1, ARGV[1], false
      for x in string.gmatch(xids, '%d+') do
        n = n + 1
        if x == ARGV[1] then known = true end
        if tonumber(x) > tonumber(top) then top = x end
      end
      if not known then
        if n > 8 then xids = '^' .. top elseif xids == '' then xids = ARGV[1] else xids = xids .. ',' .. ARGV[1] end
      end
    end
    m = 'M||0|' .. ARGV[2] .. '|' .. xids
  end
  redis.call('SET', KEYS[i], m, 'PX', ARGV[3])
end
return #KEYS
"""
"""KEYS key…; ARGV xid, epoch, ttl ms of the marker. For writers, before COMMIT."""

SWAP: Final = """
local done = {}
for i = 1, #KEYS do
  local a = 3 * (i - 1)
  if redis.pcall('GET', KEYS[i]) == ARGV[a + 1] then
    if ARGV[a + 2] == '' then redis.call('DEL', KEYS[i])
    elseif ARGV[a + 3] == '0' then redis.call('SET', KEYS[i], ARGV[a + 2], 'KEEPTTL')
    else redis.call('SET', KEYS[i], ARGV[a + 2], 'PX', ARGV[a + 3]) end
    done[i] = 1
  else
    done[i] = 0
  end
end
return done
"""
"""KEYS key…; ARGV old, new (empty: delete), ttl ms (0: keep it) for each: compare and swap. Answers 1 or 0 for each."""

SHA1: Final = {script: sha1(script.encode()).hexdigest() for script in (LEASE, MARK, SWAP)}  # noqa: S324  # Redis' name for it
