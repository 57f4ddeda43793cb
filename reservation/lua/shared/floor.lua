-- The lane's sequence, and its least value afterwards: not below `wanted`, not behind the stream. Needs
-- `read_sequence`.
local function read_floor(wanted)
  local least = tonumber(wanted)
  if not least or least < 0 or least > 9007199254740000 or least % 1 ~= 0 then
    malformed('floor')
  end
  local before = read_sequence(call('HGET', KEYS[1], 'seq'))
  local newest = 0
  if call('EXISTS', KEYS[2]) == 1 then
    local info = call('XINFO', 'STREAM', KEYS[2])
    for place = 1, #info, 2 do
      if info[place] == 'last-generated-id' then
        newest = tonumber(string.match(info[place + 1], '^%d+'))
      end
    end
  end
  return before, max(before, least, newest)
end
