-- Builds as a build farm is asked for them: each with a tag of its own, of one of a hundred projects with a Dockerfile
-- of its own. The sums at the end are one line of JSON.
local PROJECTS = 100
local BODY = '{"image_name": "registry.example:5000/team/app-%d:%d", "dockerfile": "FROM debian:12\\nLABEL project=%d\\n' ..
    'RUN apt-get update && apt-get install -y curl\\nENV LANG=C.UTF-8\\nCMD [\\"/srv/run\\"]\\n"}'
local count = 0

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"

function request()
    count = count + 1
    local project = count % PROJECTS
    return wrk.format(nil, nil, nil, BODY:format(project, count, project))
end

function done(summary, latency, requests)
    local errors = summary.errors
    print(string.format('{"per_s": %f, "p99_ms": %f, "errors": %d}',
        summary.requests / summary.duration * 1e6, latency:percentile(99) / 1000,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
