#!lua flags=no-writes
-- Decides a batch of order requests of one lane like `reserve-2-2n`, each as if it came alone, and writes nothing. For
-- requests of a sold-out SKU. Works with EVALSHA_RO.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
--   3 + 2i user hash of request i, i from 0
--   4 + 2i order of request i
-- ARGV
--   like `reserve-2-2n`
-- Returns an array: now_ms, then for each request an integer argument * 16 + output (REPLAYED: the record, a string)
-- Outputs
--   1 REPLAYED same key, same lines: the apply-once record
--   2 KEY_REUSED same key, other lines
--   3 STALE unknown sale, other epoch or version, or closed for recovery
--   4 NOT_OPEN argument: milliseconds until the sale opens, 0 when paused
--   5 ENDED
--   6 RATE_LIMITED argument: milliseconds to wait
--   7 PURCHASE_LIMIT
--   8 SOLD_OUT
--   9 HAS_STOCK `reserve` would accept the request, or note that units of other lanes are wanted: ask there
--   10 STREAM_FULL

--- @include names
--- @include errors
--- @include outcomes
--- @include sequence
--- @include user
--- @include batch
--- @include decide

local reply = { now_ms }
for i = 0, requests - 1 do
  local answer, next_state = decide(i)
  if next_state or answer == UNITS_ELSEWHERE then
    answer = HAS_STOCK
  end
  reply[i + 2] = answer
end
return reply
