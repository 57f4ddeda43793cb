#!lua flags=allow-oom
-- Tells the lane how many units of a SKU are left in all lanes of the sale and in transit, at most. A request for more
-- is sold out; any other request without enough units in the lane is told to try again. Runs with full memory: a sale
-- that is sold out must say so.
--
-- KEYS
--   1 state of the lane
-- ARGV
--   1 short sale id
--   2 epoch
--   3 SKU index
--   4 number of returns, modulo 256, at which the lane was read: units that came back since make the bound void
--   5 units left, at most; 255 for more
-- Returns an integer
-- Outputs
--   1 NOTED
--   0 CHANGED units came back since the lane was read
--   -1 STALE the lane does not know the sale, has another epoch, or has closed the sale for recovery

--- @include names
--- @include errors
--- @include many_lanes

local returns, left = whole(ARGV[4], 0, 255), whole(ARGV[5], 0, 255)
if not stock then
  return -1
end
local wanted = byte(stock, 30)
if byte(stock, 31) ~= returns then
  return 0
end
if wanted > left then
  wanted = 0 -- the answer to such a request is sold out from now on
end
call('HSET', KEYS[1], field, sub(stock, 1, 28) .. char(left, wanted, returns))
return 1
