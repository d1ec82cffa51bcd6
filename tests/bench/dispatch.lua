-- Payloads of 1 KB as the dispatcher takes them. The bodies are made beforehand, one to a line of the file in BODIES; the
-- token is in TOKEN. The sums at the end are one line of JSON.
local bodies = {}
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
local count = 0

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("TOKEN")

function request()
    count = count + 1
    return wrk.format(nil, nil, nil, bodies[count % #bodies + 1])
end

function done(summary, latency, requests)
    local errors = summary.errors
    print(string.format('{"per_s": %f, "p99_ms": %f, "errors": %d}',
        summary.requests / summary.duration * 1e6, latency:percentile(99) / 1000,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
