-- Orders for wrk: each request has another user's token and a fresh key. All but the key is built before the run.
-- Arguments after `--`: token file (lines `user id TAB token`), path, SKU, tag of the run, first line, number of lines.

local heads, count, serial = {}, 0, 0
local tail, tag

function init(args)
  local first, lines = tonumber(args[5]), tonumber(args[6])
  local body = '{"items":[{"sku":"' .. args[3] .. '","quantity":1}]}'
  tag = args[4] .. '-'
  tail = '\r\n\r\n' .. body
  local at = 0
  for line in io.lines(args[1]) do
    at = at + 1
    if at > first + lines then break end
    if at > first then
      count = count + 1
      heads[count] = 'POST ' .. args[2] .. ' HTTP/1.1\r\nHost: edge\r\nContent-Type: application/json\r\nContent-Length: '
        .. #body .. '\r\nAuthorization: Bearer ' .. line:match('\t(.*)') .. '\r\nIdempotency-Key: '
    end
  end
  collectgarbage()
end

function request()
  serial = serial + 1
  return heads[serial % count + 1] .. tag .. serial .. tail
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nRESULT {"requests":%d,"duration_us":%d,"not_2xx":%d,"broken":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d}\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9), latency.max))
end
