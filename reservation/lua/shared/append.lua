-- Appends to the lane's stream; `seq`, declared by the including script, is the newest number. Redis writes a Lua
-- number without an exponent up to 2^53 and reads an entry id of one number as `<number>-0`; `tostring` would lose
-- digits.
local appended = false
local function append(stream, entry)
  seq = seq + 1
  if appended then
    call('XADD', stream, seq, 'e', entry)
    return
  end
  -- The first write of the script. It fails when the stream is ahead of the sequence: the lane's state went back.
  local added = redis.pcall('XADD', stream, seq, 'e', entry)
  if type(added) == 'table' then
    corrupt('the stream refused ' .. seq .. ': ' .. added.err)
  end
  appended = true
end
