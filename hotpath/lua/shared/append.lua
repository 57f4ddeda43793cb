-- Appends to the lane's stream; `seq`, made by the includer, is the newest number.

-- A number of 15 digits or more would be written with an exponent.
local function seq_text(value)
  return value < 100000000000000 and value .. '' or string.format('%.0f', value)
end

local appended = false
local function append(stream, entry)
  seq = seq + 1
  if appended then
    call('XADD', stream, seq_text(seq) .. '-0', 'e', entry)
    return
  end
  -- The first write of the script. It fails when the stream is ahead of the sequence: the lane's state went back.
  local added = redis.pcall('XADD', stream, seq_text(seq) .. '-0', 'e', entry)
  if type(added) == 'table' then
    corrupt('the stream refused ' .. seq_text(seq) .. ': ' .. added.err)
  end
  appended = true
end
