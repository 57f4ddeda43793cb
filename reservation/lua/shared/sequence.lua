-- Reads the lane's newest sequence number.
local function read_sequence(text)
  if not text then
    return 0
  end
  local value = tonumber(text)
  if not value or value < 0 or value > 9007199254740000 or value % 1 ~= 0 then
    corrupt('sequence')
  end
  return value
end
