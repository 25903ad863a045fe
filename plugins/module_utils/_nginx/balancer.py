# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The part of the load balancer that runs inside nginx, in Lua.

All state lies in a shared dictionary: every worker sees the same, and a reload keeps it. One worker, whoever holds the lease, makes the
checks and moves servers on in time. A server is closed (it takes requests), open (it takes none) or half_open (it takes a few, on trial).

An upstream with a canary has two sides: its own servers are the stable one. Each request, or each client by its cookie, has a place from 0
to 9999; the places below the share are the canary's, so that a share that grows takes nobody away from it.
"""

from __future__ import annotations

LUA = r"""-- Written by headroom.scale: changes made by hand are replaced.
local balancer = require "ngx.balancer"
local dict = ngx.shared.headroom
local M = {}

local TICK_S, LEASE_S, FORGET_S, SWEEP_S = 0.25, 2, 300, 5
local POINTS = 160
local BODY_BYTES = 65536
local ROUND = 4096
local SPARE = 1024
-- the last bound of the histogram of response times; what is beyond counts as one more
local BOUNDS = 63
-- what nginx takes as "no server is there": status 502; a status of our own would need a patched nginx
local BUSY = -3
-- an answer that says that the server cannot serve
local FAILED = { ["502"] = true, ["503"] = true, ["504"] = true }

local upstreams, order, snapshots = {}, {}, {}

-- names are made once: a request needs a dozen of them
local function key(u, s, what)
    local name = s.keys[what]
    if not name then
        name = "s|" .. u.name .. "|" .. s.name .. "|" .. what
        s.keys[what] = name
    end
    return name
end
local function bump() dict:incr("version", 1, 0) end
local function get(u, s, what, default)
    local value = dict:get(key(u, s, what))
    if value == nil then return default end
    return value
end
local function put(u, s, what, value, ttl) dict:set(key(u, s, what), value, ttl or 0) end
local function drop(u, s, ...) for _, what in ipairs({...}) do dict:delete(key(u, s, what)) end end

function M.init(described)
    for _, u in ipairs(described) do
        upstreams[u.name] = u
        order[#order + 1] = u
        u.by_tag = {}
        for _, s in ipairs(u.servers) do
            s.tag = string.format("%08x", ngx.crc32_long(u.name .. "|" .. s.name))
            u.by_tag[s.tag] = s
            s.keys = {}
        end
        if u.check then
            u.check.accept = {}
            for _, status in ipairs(u.check.statuses) do u.check.accept[tostring(status)] = true end
        end
    end
    for _, u in ipairs(order) do
        if u.canary then
            local names = {}
            u.other = upstreams[u.canary.upstream]
            for _, s in ipairs(u.other.servers) do names[#names + 1] = s.name end
            u.canary.names = "|" .. table.concat(names, "|") .. "|"
        end
    end
    return M
end

-- the weight in force: one that was set at run time holds until another is declared
local function weight_of(u, s)
    if get(u, s, "weight_base") == s.weight then return get(u, s, "weight", s.weight) end
    return s.weight
end

local function ramp(u, s, now)
    if u.slow_start_s <= 0 then return 1 end
    local since = get(u, s, "since")
    if not since or now - since >= u.slow_start_s then return 1 end
    return math.max(0.1, (now - since) / u.slow_start_s)
end

-- the two sides of an upstream with a canary

local function counter(u, side, what) return "c|" .. u.name .. "|" .. side .. "|" .. what end
local function setting(u, what) return "r|" .. u.name .. "|" .. what end

-- a share that was set at run time holds until another share is declared, or a canary that has none of its servers
local function is_set(u)
    local names = dict:get(setting(u, "names"))
    if not names or dict:get(setting(u, "base")) ~= u.canary.percent then return false end
    for name in names:gmatch("[^|]+") do
        if u.canary.names:find("|" .. name .. "|", 1, true) then return true end
    end
    return false
end

-- the share in force, in percent; one that is lent ends by itself when nobody lends it again
local function percent_of(u)
    if not is_set(u) then return u.canary.percent end
    return dict:get(setting(u, "lent")) or dict:get(setting(u, "percent")) or u.canary.percent
end

-- multiples of the golden ratio spread evenly over any number of requests, and keep no step with a pattern in them
local function next_place(u)
    return math.floor(dict:incr(setting(u, "turn"), 1, 0) * 0.6180339887498949 % 1 * 10000)
end

local function side_of(u, ctx)
    local place
    if u.canary.cookie then
        local text = ngx.var["cookie_" .. u.canary.cookie] or ""
        place = #text <= 4 and text:match("^%d+$") and tonumber(text)
        if not place then
            place = next_place(u)
            ctx.place = place
        end
    end
    return (place or next_place(u)) < percent_of(u) * 100 and "canary" or "stable"
end

-- bounds of the histogram in seconds: a quarter of an octave each, from 1 ms to 55 s
local function bound(n) return 0.001 * 2 ^ (n / 4) end

local function observe(u, side, failed, took)
    dict:incr(counter(u, side, "requests"), 1, 0)
    if failed then dict:incr(counter(u, side, "errors"), 1, 0) end
    if not took then return end
    local n = took <= 0.001 and 0 or math.min(BOUNDS + 1, math.ceil(4 * math.log(took / 0.001) / math.log(2) - 1e-9))
    dict:incr(counter(u, side, n), 1, 0)
    dict:incr(counter(u, side, "seconds"), took, 0)
end

-- points of a ring: a server that goes takes only its own keys along
local function ring_of(u, weights)
    local points, total = {}, 0
    for _, weight in ipairs(weights) do total = total + weight end
    for i, s in ipairs(u.servers) do
        for n = 1, math.max(1, math.floor(POINTS * #weights * weights[i] / total)) do
            points[#points + 1] = { ngx.crc32_long(s.name .. "#" .. n), i }
        end
    end
    table.sort(points, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
    return points
end

-- a whole round of smooth weighted round robin, so that a request only has to look up whose turn it is
local function turns_of(u, weights, among)
    local total, turns, current = 0, {}, {}
    for _, i in ipairs(among) do total, current[i] = total + weights[i], 0 end
    -- with other algorithms few requests are a tie
    if u.algorithm ~= "round_robin" or total > ROUND or total % 1 ~= 0 then return nil end
    for n = 1, total do
        local best
        for _, i in ipairs(among) do
            current[i] = current[i] + weights[i]
            if not best or current[i] > current[best] then best = i end
        end
        current[best] = current[best] - total
        turns[n] = best
    end
    return turns
end

local function snapshot(u)
    local version = dict:get("version") or 0
    local old = snapshots[u.name]
    if old and old.version == version and (not old.ramping or ngx.now() - old.at < 0.1) then return old end
    local now = ngx.now()
    local new = { version = version, at = now, ramping = false, weights = {}, state = {}, current = {}, among = {}, spare = {} }
    local whole = {}
    for i, s in ipairs(u.servers) do
        whole[i] = weight_of(u, s)
        local part = ramp(u, s, now)
        new.ramping = new.ramping or part < 1
        new.weights[i] = whole[i] * part
        new.state[i] = get(u, s, "state", "closed")
        new.current[i] = old and old.current[i] or 0
        if new.state[i] ~= "open" and get(u, s, "drained") == nil then
            local list = s.backup and new.spare or new.among
            list[#list + 1] = i
        end
    end
    new.turns = not new.ramping and turns_of(u, new.weights, new.among)
    new.turn = old and old.turn or 0
    if u.algorithm == "hash" or u.algorithm == "ip_hash" then
        local print = table.concat(whole, ",")
        new.print = print
        new.ring = old and old.print == print and old.ring or ring_of(u, whole)
    end
    snapshots[u.name] = new
    return new
end

-- smooth weighted round robin over the given servers
local function in_turn(snap, among)
    if among == snap.among and snap.turns then
        snap.turn = snap.turn % #snap.turns + 1
        return snap.turns[snap.turn]
    end
    local best, total = nil, 0
    for _, i in ipairs(among) do
        snap.current[i] = snap.current[i] + snap.weights[i]
        total = total + snap.weights[i]
        if not best or snap.current[i] > snap.current[best] then best = i end
    end
    snap.current[best] = snap.current[best] - total
    return best
end

local function least(u, snap, among, score)
    local found, lowest = {}, nil
    for _, i in ipairs(among) do
        local value = score(u, snap, i)
        if not lowest or value < lowest then found, lowest = {}, value end
        if value == lowest then found[#found + 1] = i end
    end
    return #found == 1 and found[1] or in_turn(snap, found)
end

local function connections(u, snap, i) return get(u, u.servers[i], "active", 0) / snap.weights[i] end

-- what is left of a response time: half of it every two seconds, so that a server that once was slow is soon tried again
local function aged(u, s)
    return 0.5 ^ (math.max(0, ngx.now() - get(u, s, "response_at", 0)) / 2)
end

-- seconds that a server takes to answer
local function seconds(u, i)
    local s = u.servers[i]
    return math.max(0.001, get(u, s, "response", 0) * aged(u, s))
end

local function wait(u, snap, i) return seconds(u, i) * (get(u, u.servers[i], "active", 0) + 1) / snap.weights[i] end

-- one of some servers by chance and weight, and not a given one
local function draw(snap, among, except)
    local total = except and -snap.weights[except] or 0
    for _, i in ipairs(among) do total = total + snap.weights[i] end
    local at, last = math.random() * total, nil
    for _, i in ipairs(among) do
        if i ~= except then
            last, at = i, at - snap.weights[i]
            if at < 0 then return i end
        end
    end
    return last
end

local function on_ring(u, snap, among, text)
    local ring, may = snap.ring, {}
    for _, i in ipairs(among) do may[i] = true end
    local hash, low, high = ngx.crc32_long(text), 1, #ring + 1
    while low < high do
        local middle = math.floor((low + high) / 2)
        if ring[middle][1] < hash then low = middle + 1 else high = middle end
    end
    for step = 0, #ring - 1 do
        local i = ring[(low - 1 + step) % #ring + 1][2]
        if may[i] then return i end
    end
end

local function network()
    local raw = ngx.var.binary_remote_addr
    return #raw == 4 and raw:sub(1, 3) or raw
end

-- a closure made here would keep the compiler of Lua off all that balances
local function select_by(u, snap, among)
    if #among == 1 then return among[1] end
    local algorithm = u.algorithm
    if algorithm == "least_conn" then
        return least(u, snap, among, connections)
    elseif algorithm == "least_time" then
        return least(u, snap, among, wait)
    elseif algorithm == "random_two" then
        local first = draw(snap, among)
        return least(u, snap, { first, draw(snap, among, first) }, connections)
    elseif algorithm == "hash" then
        return on_ring(u, snap, among, ngx.var.headroom_key or "")
    elseif algorithm == "ip_hash" then
        return on_ring(u, snap, among, network())
    end
    return in_turn(snap, among)
end

-- a server on trial takes only as many requests as it is granted
local function granted(u, i)
    if dict:incr(key(u, u.servers[i], "trials"), 1, 0) <= u.half_open_requests then return true end
    dict:incr(key(u, u.servers[i], "trials"), -1)
    return false
end

-- name of what this worker has at a server, for the case that it is killed
local function held(u, s)
    s.held = s.held or "p|" .. ngx.worker.pid() .. "|" .. u.name .. "|" .. s.name
    return s.held
end

-- whether a request was at a server (s), or at one of an upstream (u), since it last had tried all of them
local function tried(ctx, what, one)
    for n = ctx.from, #ctx.order do
        if ctx.order[n][what] == one then return true end
    end
    return false
end

-- those of some servers that are still to be tried
local function left(u, ctx, some, refused)
    if not refused and ctx.from > #ctx.order then return some end
    local found = {}
    for _, i in ipairs(some) do
        if not (refused and refused[i]) and not tried(ctx, "s", u.servers[i]) then found[#found + 1] = i end
    end
    return found
end

local function by_cookie(u, ctx, among)
    if tried(ctx, "u", u) then return nil end
    local s = u.by_tag[ngx.var["cookie_" .. u.cookie] or ""]
    for _, i in ipairs(among) do
        if s and u.servers[i] == s then return i end
    end
end

local function choose(u, ctx, refused)
    local snap = snapshot(u)
    local among = left(u, ctx, snap.among, refused)
    if #among == 0 then among = left(u, ctx, snap.spare, refused) end
    if #among == 0 then return nil end
    local i = u.cookie and by_cookie(u, ctx, among) or select_by(u, snap, among)
    if snap.state[i] ~= "half_open" then return i, false end
    if granted(u, i) then return i, true end
    refused = refused or {}
    refused[i] = true
    return choose(u, ctx, refused)
end

-- a server of the side that the request is on; where the canary has none that serves, the stable side does
local function choose_side(ctx)
    local i, trial = choose(ctx.u, ctx)
    if not i and ctx.side == "canary" and ctx.u ~= ctx.parent then
        ctx.u = ctx.parent
        i, trial = choose(ctx.u, ctx)
    end
    return i, trial
end

-- what is known of requests that ended is used again for others: tables of their own would keep the collector busy
local spare, NOTHING = {}, {}

local function taken(u)
    local ctx = spare[#spare]
    if not ctx then return { u = u, order = {}, from = 1 } end
    spare[#spare] = nil
    ctx.u, ctx.from = u, 1
    return ctx
end

local function given_back(ctx)
    -- what asks again finds nothing, and not what has become another request's
    ngx.ctx = NOTHING
    local order = ctx.order
    if #order > 1 or ctx.parent or #spare >= SPARE then return end
    order[1], ctx.last = nil, order[1]
    spare[#spare + 1] = ctx
end

function M.pick(name)
    local ctx = ngx.ctx
    if not ctx.order then
        local u = upstreams[name]
        ctx = taken(u)
        local most = #u.servers
        if u.canary then
            ctx.parent, ctx.side = u, side_of(u, ctx)
            if ctx.side == "canary" then
                ctx.u = u.other
                most = most + #u.other.servers
            end
        end
        ngx.ctx = ctx
        if most > 1 then balancer.set_more_tries(math.min(most, 3) - 1) end
    end
    local i, trial = choose_side(ctx)
    if not i and ctx.from <= #ctx.order then
        -- nginx grants one more try where a kept connection was closed just then; the number of tries is its own
        ctx.from = #ctx.order + 1
        i, trial = choose_side(ctx)
    end
    if not i then return ngx.exit(BUSY) end
    local u = ctx.u
    local s = u.servers[i]
    local one = ctx.last or {}
    one.u, one.s, one.trial, ctx.last = u, s, trial, nil
    ctx.order[#ctx.order + 1] = one
    dict:incr(key(u, s, "active"), 1, 0)
    dict:incr(held(u, s), 1, 0)
    local ok, problem = balancer.set_current_peer(s.ip, s.port)
    if not ok then
        ngx.log(ngx.ERR, "no peer: ", problem)
        return ngx.exit(500)
    end
end

-- how many servers of an upstream may be out at once: one at least and never the last one, unless others can take over or all may
local function cap(u)
    local count = 0
    for _, s in ipairs(u.servers) do if not s.backup then count = count + 1 end end
    if u.max_ejected_percent == 0 then return 0 end
    if u.max_ejected_percent == 100 or count < #u.servers then return count end
    return math.min(count - 1, math.max(1, math.floor(count * u.max_ejected_percent / 100)))
end

local function open_for(u, s)
    local times = dict:incr(key(u, s, "openings"), 1, 0)
    return math.min(u.max_open_s, u.open_s * 2 ^ math.min(times - 1, 16))
end

local function eject(u, s, why)
    -- the one worker that adds this key ejects; it stays until the server is closed again
    if not dict:add(key(u, s, "ejected"), true) then return end
    if not s.backup and dict:incr("e|" .. u.name, 1, 0) > cap(u) then
        dict:incr("e|" .. u.name, -1)
        drop(u, s, "ejected")
        ngx.log(ngx.WARN, "headroom: ", u.name, " ", s.name, " fails (", why, ") and stays: enough servers are out")
        return
    end
    put(u, s, "until", ngx.now() + open_for(u, s))
    put(u, s, "state", "open")
    drop(u, s, "check_passes", "since")
    bump()
    ngx.log(ngx.WARN, "headroom: ", u.name, " ", s.name, " closed -> open: ", why)
end

local function reopen(u, s, why)
    put(u, s, "until", ngx.now() + open_for(u, s))
    put(u, s, "state", "open")
    drop(u, s, "check_passes")
    bump()
    ngx.log(ngx.WARN, "headroom: ", u.name, " ", s.name, " half_open -> open: ", why)
end

local function close(u, s)
    put(u, s, "since", ngx.now())
    drop(u, s, "state", "until", "openings", "trials", "trial_passes", "fails", "check_fails")
    if dict:get(key(u, s, "ejected")) then
        drop(u, s, "ejected")
        if not s.backup then dict:incr("e|" .. u.name, -1, 1) end
    end
    bump()
    ngx.log(ngx.WARN, "headroom: ", u.name, " ", s.name, " half_open -> closed")
end

local function judge(u, s, trial, failed, known)
    if not trial and not failed then return end
    local state = get(u, s, "state", "closed")
    if trial and state == "half_open" then
        if not known then
            dict:incr(key(u, s, "trials"), -1)
        elseif failed then
            reopen(u, s, "a trial request failed")
        elseif dict:incr(key(u, s, "trial_passes"), 1, 0) == u.half_open_requests then
            close(u, s)
        end
    elseif failed and state == "closed" then
        if dict:incr(key(u, s, "fails"), 1, 0, u.fail_timeout_s) >= u.max_fails then
            eject(u, s, u.max_fails .. " requests failed")
        end
    end
end

-- how a request went on its side: by its last answer from there, and none at all is an error too
local function observe_side(ctx, statuses, times)
    local u = ctx.side == "canary" and ctx.parent.other or ctx.parent
    local failed, took = true, 0
    for n, one in ipairs(ctx.order) do
        if one.u == u then
            local status = statuses[n]
            failed = status ~= nil and status:find("^5") ~= nil
            if times[n] and times[n] > 0 then took = took + times[n] end
            if status == nil or status == "-" or status == "499" then
                -- a client that left waited so long at least
                took = math.max(took, ngx.now() - ngx.req.start_time())
            end
        end
    end
    observe(ctx.parent, ctx.side, failed, #ctx.order > 0 and took or nil)
end

-- the moving mean of a server's response time; what came in between is added at most so often, unless it decides who is asked
local function note_time(u, s, took)
    local now, mean = ngx.now(), s.mean
    if not mean then
        mean = { sum = 0, count = 0, at = 0 }
        s.mean = mean
    end
    mean.sum, mean.count = mean.sum + took, mean.count + 1
    if now - mean.at < 0.05 and u.algorithm ~= "least_time" then return end
    local before, kept = get(u, s, "response"), 0.9 ^ mean.count
    -- where it decides who is asked, one slow answer must not outweigh all that come after it
    if u.algorithm == "least_time" then kept = kept * aged(u, s) end
    put(u, s, "response", before and before * kept + mean.sum / mean.count * (1 - kept) or mean.sum / mean.count)
    put(u, s, "response_at", now)
    mean.sum, mean.count, mean.at = 0, 0, now
end

-- a request at a server came to its end
local function ended(one, status, took)
    local u, s = one.u, one.s
    dict:incr(key(u, s, "active"), -1)
    dict:incr(held(u, s), -1)
    dict:incr(key(u, s, "requests"), 1, 0)
    -- a client that left says nothing about the server
    local known = status ~= nil and status ~= "-" and status ~= "499"
    local failed = known and FAILED[status] or false
    if failed then dict:incr(key(u, s, "failures"), 1, 0) end
    judge(u, s, one.trial, failed, known)
    if known and not failed and took and took >= 0 then note_time(u, s, took) end
end

function M.log()
    local ctx = ngx.ctx
    if not ctx.order then return end
    local status, took = ngx.var.upstream_status, ngx.var.upstream_response_time
    local statuses, times
    -- nearly all requests are at one server, for which nothing is taken apart
    if #ctx.order == 1 and not ctx.side then
        ended(ctx.order[1], status, tonumber(took))
        return given_back(ctx)
    end
    statuses, times = {}, {}
    for word in (status or ""):gmatch("[^, :]+") do statuses[#statuses + 1] = word end
    for word in (took or ""):gmatch("[^, :]+") do times[#times + 1] = tonumber(word) or -1 end
    for n, one in ipairs(ctx.order) do ended(one, statuses[n], times[n]) end
    -- a probe is no client
    if ctx.side and ngx.var.server_name ~= "headroom-management" then observe_side(ctx, statuses, times) end
    given_back(ctx)
end

local function set_cookie(name, value, ttl_s)
    local cookie = name .. "=" .. value .. "; Path=/; HttpOnly; SameSite=Lax"
    if ttl_s > 0 then cookie = cookie .. "; Max-Age=" .. ttl_s end
    if ngx.var.scheme == "https" then cookie = cookie .. "; Secure" end
    local there = ngx.header["Set-Cookie"]
    if type(there) == "table" then
        there[#there + 1] = cookie
        ngx.header["Set-Cookie"] = there
    else
        ngx.header["Set-Cookie"] = there and { there, cookie } or cookie
    end
end

function M.header()
    local ctx = ngx.ctx
    if not ctx.order then return end
    if ctx.place then set_cookie(ctx.parent.canary.cookie, ctx.place, ctx.parent.canary.cookie_ttl_s) end
    local last = ctx.order[#ctx.order]
    if not last or not last.u.cookie or ngx.var["cookie_" .. last.u.cookie] == last.s.tag then return end
    set_cookie(last.u.cookie, last.s.tag, last.u.cookie_ttl_s)
end

-- active checks

local function asked(u, s)
    local c, socket = u.check, ngx.socket.tcp()
    socket:settimeout(c.timeout_s * 1000)
    local ok, problem = socket:connect(s.ip, s.port)
    if not ok then return false, problem end
    local sent
    sent, problem = socket:send("GET " .. c.path .. " HTTP/1.0\r\nHost: " .. (c.host ~= "" and c.host or s.name)
        .. "\r\nUser-Agent: headroom-check\r\nConnection: close\r\n\r\n")
    if not sent then return false, problem end
    -- one limit for all of the answer, however slowly it comes
    local text, deadline, status = "", ngx.now() + c.timeout_s, nil
    local function enough()
        status = status or text:match("^HTTP/%d%.%d (%d%d%d)[^\n]*\n")
        return status and (not c.accept[status] or c.body == "" or text:find(c.body, 1, true))
    end
    while not enough() and #text < BODY_BYTES do
        local left = deadline - ngx.now()
        if left <= 0 then
            problem = "timeout"
            break
        end
        socket:settimeout(left * 1000)
        local data
        data, problem = socket:receiveany(4096)
        if not data then break end
        text = text .. data
    end
    socket:close()
    if not status then return false, problem == "closed" and "no HTTP" or problem or "no HTTP" end
    if not c.accept[status] then return false, "status " .. status end
    if not enough() then return false, "another body" end
    return true
end

local function check(premature, u, s)
    if premature then return end
    local ok, problem = asked(u, s)
    -- a worker that leaves may have cut its own checks short
    if ngx.worker.exiting() then return end
    put(u, s, "check", ok and "ok" or problem or "failed")
    local state = get(u, s, "state", "closed")
    if ok then
        drop(u, s, "check_fails")
        if state == "open" then dict:incr(key(u, s, "check_passes"), 1, 0) end
        return
    end
    drop(u, s, "check_passes")
    local fails = dict:incr(key(u, s, "check_fails"), 1, 0)
    if state == "half_open" then
        reopen(u, s, "check: " .. (problem or "failed"))
    elseif state == "closed" and fails >= u.check.fails then
        eject(u, s, fails .. " checks failed, the last one with: " .. (problem or "failed"))
    end
end

local function move_on(u, s, now)
    local state = get(u, s, "state", "closed")
    if state == "open" then
        local passed = not u.check or get(u, s, "check_passes", 0) >= u.check.passes
        if passed and now >= get(u, s, "until", 0) then
            drop(u, s, "trials", "trial_passes")
            put(u, s, "trial_since", now)
            put(u, s, "state", "half_open")
            bump()
            ngx.log(ngx.WARN, "headroom: ", u.name, " ", s.name, " open -> half_open")
        end
    elseif state == "half_open" and now - get(u, s, "trial_since", now) > u.max_open_s then
        -- trials whose end nobody told, as of a worker that was killed, are given anew
        drop(u, s, "trials", "trial_passes")
        put(u, s, "trial_since", now)
    end
end

local next_check, unknown_since, swept = {}, {}, 0

local function sweep(now)
    local known, alive = {}, {}
    for _, u in ipairs(order) do
        for _, s in ipairs(u.servers) do known["s|" .. u.name .. "|" .. s.name] = true end
        if u.canary then
            known["c|" .. u.name] = true
            known["r|" .. u.name] = is_set(u) or not dict:get(setting(u, "names"))
        end
        local out = 0
        for _, s in ipairs(u.servers) do
            if not s.backup and dict:get(key(u, s, "ejected")) then out = out + 1 end
        end
        dict:set("e|" .. u.name, out)
    end
    for _, name in ipairs(dict:get_keys(0)) do
        local kind = name:sub(1, 2)
        if kind == "p|" then
            local pid, upstream, server = name:match("^p|(%d+)|([^|]+)|(.+)$")
            if alive[pid] == nil then
                local file = io.open("/proc/" .. pid .. "/stat")
                alive[pid] = file ~= nil
                if file then file:close() end
            end
            if not alive[pid] then
                -- what a worker that was killed had in its hands
                local left = dict:get(name) or 0
                if left > 0 then dict:incr("s|" .. upstream .. "|" .. server .. "|active", -left) end
                dict:delete(name)
            end
        elseif (kind == "s|" and not known[name:match("^(s|[^|]+|[^|]+)|")])
            or ((kind == "c|" or kind == "r|") and not known[name:match("^(.|[^|]+)|")]) then
            -- kept for a while: the change that took it out may still be taken back
            unknown_since[name] = unknown_since[name] or now
            if now - unknown_since[name] > FORGET_S then
                dict:delete(name)
                unknown_since[name] = nil
            end
        else
            unknown_since[name] = nil
        end
    end
end

local function tick(premature)
    local pid = ngx.worker.pid()
    if premature then
        if dict:get("leader") == pid then dict:delete("leader") end
        return
    end
    if not dict:add("leader", pid, LEASE_S) then
        if dict:get("leader") ~= pid then
            next_check = {}
            return
        end
        dict:set("leader", pid, LEASE_S)
    end
    local now = ngx.now()
    for _, u in ipairs(order) do
        for n, s in ipairs(u.servers) do
            move_on(u, s, now)
            if u.check then
                local id = key(u, s, "")
                next_check[id] = next_check[id] or now + u.check.interval_s * (n - 1) / #u.servers
                if now >= next_check[id] then
                    next_check[id] = now + u.check.interval_s
                    ngx.timer.at(0, check, u, s)
                end
            end
        end
    end
    if now - swept > SWEEP_S then
        swept = now
        sweep(now)
    end
end

function M.start()
    math.randomseed(ngx.worker.pid() + ngx.now() * 1000)
    ngx.timer.every(TICK_S, tick)
    bump()
end

-- what is seen from outside

local function quoted(text)
    return '"' .. tostring(text):gsub('[%c"\\]', function(c) return string.format("\\u%04x", c:byte()) end) .. '"'
end

local function seen(u, s)
    return {
        { "address", quoted(s.name) },
        { "state", quoted(get(u, s, "state", "closed")) },
        { "drained", tostring(get(u, s, "drained") ~= nil) },
        { "backup", tostring(s.backup) },
        { "weight", weight_of(u, s) },
        { "declared_weight", s.weight },
        { "active", math.max(0, get(u, s, "active", 0)) },
        { "requests", get(u, s, "requests", 0) },
        { "failures", get(u, s, "failures", 0) },
        { "response_ms", string.format("%.1f", get(u, s, "response", 0) * 1000) },
        { "check", u.check and quoted(get(u, s, "check", "")) or "null" },
    }
end

-- counts since the share last changed: bound of the histogram to the requests below it, and the other counts by name
local function counted(u, side)
    local function since(what)
        local name = counter(u, side, what)
        return math.max(0, (dict:get(name) or 0) - (dict:get(name .. "|base") or 0))
    end
    local found = { requests = since("requests"), errors = since("errors"), buckets = {}, all = 0 }
    for n = 0, BOUNDS + 1 do
        found.buckets[n] = since(n)
        found.all = found.all + found.buckets[n]
    end
    return found
end

local function p95(found)
    local rank, below = found.all * 0.95, 0
    for n = 0, BOUNDS do
        local here = found.buckets[n]
        if here > 0 and below + here >= rank then
            local low = n > 0 and bound(n - 1) or 0
            return low + (bound(n) - low) * (rank - below) / here
        end
        below = below + here
    end
    return bound(BOUNDS)
end

local function side_seen(u, side)
    local found, buckets = counted(u, side), {}
    for n = 0, BOUNDS + 1 do
        if found.buckets[n] > 0 then buckets[#buckets + 1] = "[" .. n .. ", " .. found.buckets[n] .. "]" end
    end
    return '{"requests": ' .. found.requests .. ', "errors": ' .. found.errors
        .. ', "p95_ms": ' .. (found.all > 0 and string.format("%.1f", p95(found) * 1000) or "null")
        .. ', "histogram": [' .. table.concat(buckets, ", ") .. "]}"
end

local function canary_seen(u)
    if not u.canary then return "null" end
    local lent = is_set(u) and dict:get(setting(u, "lent")) ~= nil
    return '{"upstream": ' .. quoted(u.canary.upstream) .. ', "percent": ' .. percent_of(u)
        .. ', "declared_percent": ' .. u.canary.percent
        .. ', "lease_s": ' .. (lent and string.format("%.1f", dict:ttl(setting(u, "lent")) or 0) or "null")
        .. ', "changes": ' .. (dict:get(counter(u, "all", "changes")) or 0)
        .. ', "stable": ' .. side_seen(u, "stable") .. ', "canary": ' .. side_seen(u, "canary") .. "}"
end

function M.show()
    ngx.header["Content-Type"] = "application/json"
    local rows = {}
    for _, u in ipairs(order) do
        local servers = {}
        for _, s in ipairs(u.servers) do
            local fields = {}
            for _, pair in ipairs(seen(u, s)) do fields[#fields + 1] = quoted(pair[1]) .. ": " .. pair[2] end
            servers[#servers + 1] = "{" .. table.concat(fields, ", ") .. "}"
        end
        rows[#rows + 1] = "{" .. '"name": ' .. quoted(u.name) .. ', "algorithm": ' .. quoted(u.algorithm)
            .. ', "canary": ' .. canary_seen(u) .. ', "servers": [' .. table.concat(servers, ", ") .. "]}"
    end
    ngx.say('{"upstreams": [', table.concat(rows, ", "), "]}")
end

local METRICS = {
    { "requests_total", "counter", "Requests sent to a server.", function(u, s) return get(u, s, "requests", 0) end },
    { "failures_total", "counter", "Requests that a server failed.", function(u, s) return get(u, s, "failures", 0) end },
    { "active", "gauge", "Requests at a server now.", function(u, s) return math.max(0, get(u, s, "active", 0)) end },
    { "weight", "gauge", "Weight in force.", weight_of },
    { "drained", "gauge", "Whether a server is drained.", function(u, s) return get(u, s, "drained") and 1 or 0 end },
    { "response_seconds", "gauge", "Moving mean of the response time.", function(u, s) return get(u, s, "response", 0) end },
}

local function side_metrics(lines)
    local function each(name, kind, help, write)
        lines[#lines + 1] = "# HELP " .. name .. " " .. help
        lines[#lines + 1] = "# TYPE " .. name .. " " .. kind
        for _, u in ipairs(order) do
            if u.canary then write(u, name, '{upstream="' .. u.name .. '"') end
        end
    end
    local function sides(write)
        return function(u, name, labels)
            for _, side in ipairs({ "stable", "canary" }) do write(u, name, labels .. ',side="' .. side .. '"', side) end
        end
    end
    local function total(what)
        return sides(function(u, name, labels, side)
            lines[#lines + 1] = name .. labels .. "} " .. (dict:get(counter(u, side, what)) or 0)
        end)
    end
    each("headroom_upstream_canary_percent", "gauge", "Share of the canary in force.", function(u, name, labels)
        lines[#lines + 1] = name .. labels .. "} " .. percent_of(u)
    end)
    each("headroom_upstream_side_requests_total", "counter", "Requests that a side was given.", total("requests"))
    each("headroom_upstream_side_errors_total", "counter", "Requests that a side failed.", total("errors"))
    each("headroom_upstream_side_seconds", "histogram", "Response times of a side.", sides(function(u, name, labels, side)
        local sum = 0
        for n = 0, BOUNDS + 1 do
            sum = sum + (dict:get(counter(u, side, n)) or 0)
            local le = n > BOUNDS and "+Inf" or n % 4 == 0 and tostring(bound(n))
            if le then lines[#lines + 1] = name .. "_bucket" .. labels .. ',le="' .. le .. '"} ' .. sum end
        end
        lines[#lines + 1] = name .. "_sum" .. labels .. "} " .. (dict:get(counter(u, side, "seconds")) or 0)
        lines[#lines + 1] = name .. "_count" .. labels .. "} " .. sum
    end))
end

function M.metrics()
    ngx.header["Content-Type"] = "text/plain; version=0.0.4"
    local lines = {}
    local function each(name, kind, help, write)
        name = "headroom_upstream_server_" .. name
        lines[#lines + 1] = "# HELP " .. name .. " " .. help
        lines[#lines + 1] = "# TYPE " .. name .. " " .. kind
        for _, u in ipairs(order) do
            for _, s in ipairs(u.servers) do write(name, u, s, '{upstream="' .. u.name .. '",server="' .. s.name .. '"') end
        end
    end
    for _, metric in ipairs(METRICS) do
        each(metric[1], metric[2], metric[3], function(name, u, s, labels)
            lines[#lines + 1] = name .. labels .. "} " .. metric[4](u, s)
        end)
    end
    each("state", "gauge", "1 for the state that the breaker of a server is in.", function(name, u, s, labels)
        local state = get(u, s, "state", "closed")
        for _, one in ipairs({ "closed", "open", "half_open" }) do
            lines[#lines + 1] = name .. labels .. ',state="' .. one .. '"} ' .. (state == one and 1 or 0)
        end
    end)
    side_metrics(lines)
    ngx.say(table.concat(lines, "\n"))
end

local function refuse(status, text)
    ngx.status = status
    ngx.say('{"error": ', quoted(text), "}")
end

local function posted()
    ngx.header["Content-Type"] = "application/json"
    -- a page in a browser cannot set this header on a form
    if ngx.req.get_method() ~= "POST" or not ngx.var.http_x_headroom then
        refuse(405, "POST with the header X-Headroom")
        return nil
    end
    ngx.req.read_body()
    return ngx.req.get_post_args(10) or {}
end

function M.change()
    local given = posted()
    if not given then return end
    local u = upstreams[given.upstream or ""]
    if not u then return refuse(404, "no such upstream") end
    local s
    for _, one in ipairs(u.servers) do if one.name == given.server then s = one end end
    if not s then return refuse(404, "no such server") end
    local weight = tonumber(given.weight)
    if given.weight and (not weight or weight % 1 ~= 0 or weight < 0 or weight > 1000) then
        return refuse(400, "weight from 1 to 1000, or 0 for the declared one")
    end
    if given.drained == "true" then
        put(u, s, "drained", true)
    elseif given.drained == "false" then
        if get(u, s, "drained") then put(u, s, "since", ngx.now()) end
        drop(u, s, "drained")
    elseif given.drained then
        return refuse(400, "drained true or false")
    end
    if weight == 0 or weight == s.weight then
        drop(u, s, "weight", "weight_base")
    elseif weight then
        put(u, s, "weight", weight)
        put(u, s, "weight_base", s.weight)
    end
    bump()
    ngx.log(ngx.WARN, "headroom: ", u.name, " ", s.name, " drained=", given.drained, " weight=", given.weight,
        " from ", ngx.var.remote_addr)
    ngx.say("{}")
end

-- sets the share of a canary: for good, or lent for a time, after which the canary gets nothing
function M.share()
    local given = posted()
    if not given then return end
    local u = upstreams[given.upstream or ""]
    if not u or not u.canary then return refuse(404, "no such upstream with a canary") end
    local percent, lease_s = tonumber(given.percent), tonumber(given.lease_s or "0")
    if not percent or percent % 1 ~= 0 or percent < 0 or percent > 100 then return refuse(400, "percent from 0 to 100") end
    if not lease_s or not (lease_s >= 0 and lease_s <= 3600) then return refuse(400, "lease_s from 0 to 3600") end
    local before = percent_of(u)
    dict:set(setting(u, "base"), u.canary.percent)
    dict:set(setting(u, "names"), u.canary.names)
    if lease_s > 0 then
        -- first what is lent, so that no request in between finds nothing
        dict:set(setting(u, "lent"), percent, lease_s)
        dict:set(setting(u, "percent"), 0)
    else
        dict:set(setting(u, "percent"), percent)
        dict:delete(setting(u, "lent"))
    end
    if percent ~= before then
        dict:incr(counter(u, "all", "changes"), 1, 0)
        for _, side in ipairs({ "stable", "canary" }) do
            local names = { "requests", "errors" }
            for n = 0, BOUNDS + 1 do names[#names + 1] = n end
            for _, what in ipairs(names) do
                local name = counter(u, side, what)
                local value = dict:get(name)
                if value then dict:set(name .. "|base", value) end
            end
        end
        ngx.log(ngx.WARN, "headroom: ", u.name, " canary ", before, " -> ", percent, " % from ", ngx.var.remote_addr)
    end
    ngx.say("{}")
end

return M
"""
