#!lua
-- Ends a sale's rebuild in a lane: stock, applied restocks, sequence and the definition of the new epoch, at once. The
-- transfers of the older epoch are void.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
--   3 restocks of the sale
--   4 transfers of the sale in this lane
-- ARGV
--   1 short sale id
--   2 mark of the rebuild
--   3 least value of the sequence afterwards
--   4 packed definition
--   5.. packed stock of each SKU, in index order; then for each restock its idempotency key and `<index>:<quantity>`
-- Returns an integer
-- Outputs
--   1 DONE
--   -1 SUPERSEDED the sale is not under this rebuild (any more)

--- @include names
--- @include errors
--- @include elsewhere
--- @include sequence
--- @include floor

local sale, definition = ARGV[1], ARGV[4]
if #sale ~= 22 or #definition < 30 or #definition ~= 30 + 2 * byte(definition, 30) or byte(definition, 1) > 2 then
  malformed('definition')
end
local skus = byte(definition, 30)
if skus == 0 or #ARGV < 4 + skus or (#ARGV - 4 - skus) % 2 ~= 0 then
  malformed('number of SKUs')
end
for place = 5, 4 + skus do
  if not is_stock(ARGV[place]) then
    malformed('stock')
  end
  local available, reserved, paid, rejected, allotted, borrowed, lent = decode('>I4I4I4I4I4I4I4', ARGV[place])
  if allotted + borrowed - lent ~= available + reserved + paid + rejected then
    malformed('stock is not balanced')
  end
end
if call('HGET', KEYS[1], 'b:' .. sale) ~= ARGV[2] then
  return -1
end
local _, seq = read_floor(ARGV[3])
call('DEL', KEYS[3], KEYS[4])
for place = 5 + skus, #ARGV, 2 do
  call('HSET', KEYS[3], ARGV[place], ARGV[place + 1])
end
local changes = { 'seq', seq, 'd:' .. sale, definition }
for index = 0, skus - 1 do
  changes[2 * index + 5] = 's:' .. sale .. ':' .. index
  changes[2 * index + 6] = ARGV[5 + index]
end
call('HSET', KEYS[1], unpack(changes))
call('HDEL', KEYS[1], 'b:' .. sale)
return 1
