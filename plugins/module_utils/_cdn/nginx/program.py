# Copyright: headroom.scale contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# **PRIVATE** to the collection: may change at any time without notice.
"""The part of an edge that runs inside nginx, in Lua.

A request passes two servers of the same nginx. The outer one applies the edge rules, makes the cache key and keeps answers. The inner one
asks the origin, and the second one of a group when the first fails, and says in a Cache-Control of its own how long the outer one keeps it.

A purge is a moment in time, for a path, all paths that begin alike, or a tag. It is in a shared dictionary, so that all workers know
it at once, and in a file, so that it outlives nginx. An answer that the origin was asked for before is removed when it is next wanted.
"""

from __future__ import annotations

LUA = r"""-- Written by headroom.scale: changes made by hand are replaced.
local purges, passed = ngx.shared.headroom_purges, ngx.shared.headroom_passed
local M = {}

-- nginx removes what nobody asks for some time after it may
local MANAGER_S = 600
-- how long a key whose answers are not kept goes around the cache, so that its requests do not wait for one another
local PASS_S = 10
local HEAD_BYTES = 65536
local MOST_TAGS = 256
local KEPT = { [200] = true, [203] = true, [204] = true, [300] = true, [301] = true, [308] = true }
-- only as long as the origin says
local KEPT_IF_SAID = { [302] = true, [307] = true, [404] = true, [410] = true }

local edge

local function matches(regex, path) return ngx.re.find(path, regex, "jo") ~= nil end

local function has(list, value)
    for _, one in ipairs(list) do
        if one == value then return true end
    end
    return false
end

local function any(list, holds)
    for _, one in ipairs(list) do
        if holds(one) then return true end
    end
    return false
end

local function holds(rule, path, country, agent)
    return (#rule.paths == 0 or any(rule.paths, function(regex) return matches(regex, path) end))
        and (#rule.countries == 0 or has(rule.countries, country))
        and (#rule.agents == 0 or any(rule.agents, function(part) return agent:find(part, 1, true) ~= nil end))
end

local function first(rules, path, country, agent)
    for _, rule in ipairs(rules) do
        if holds(rule, path, country, agent) then return rule end
    end
end

local function text_of(value)
    if type(value) == "table" then return table.concat(value, ", ") end
    return value
end

-- what was asked for, as it was written
local function path_of(uri) return uri:match("^[^?]*") end

-- texts that stand for the same
local function plain(path) return ngx.unescape_uri(path) end

local function secure()
    for _, one in ipairs(edge.headers) do ngx.header[one.name] = one.value end
    ngx.header["X-Edge-Region"] = edge.region
end

local function answer(status, text)
    ngx.status = status
    ngx.header["Cache-Control"] = "no-store"
    ngx.header["Content-Type"] = "text/plain"
    ngx.print(text .. "\n")
    return ngx.exit(ngx.HTTP_OK)
end

-- those of some pairs whose names are wanted
local function chosen(pairs_given, names)
    if names[1] == "*" then return pairs_given end
    local found = {}
    for _, pair in ipairs(pairs_given) do
        if has(names, pair:match("^[^=]*")) then found[#found + 1] = pair end
    end
    return found
end

local function split(text, pattern)
    local found = {}
    for part in text:gmatch(pattern) do found[#found + 1] = part end
    return found
end

-- parts with their lengths, so that none can pass for another
local function joined(parts)
    for index, part in ipairs(parts) do parts[index] = #part .. ":" .. part end
    return table.concat(parts, ",")
end

local function sorted(list, separator)
    local copy = {}
    for index, one in ipairs(list) do copy[index] = one end
    table.sort(copy)
    return table.concat(copy, separator)
end

local function key_of(behavior, target, path, arguments, cookies)
    local parts = { edge.targets[target + 1], path, edge.by_scheme and ngx.var.scheme or "" }
    parts[#parts + 1] = sorted(chosen(arguments, behavior.key_arguments), "&")
    parts[#parts + 1] = sorted(chosen(cookies, behavior.key_cookies), ";")
    for _, name in ipairs(behavior.key_headers) do
        local value = ngx.var["http_" .. name:gsub("%-", "_")]
        parts[#parts + 1] = value and "=" .. value or ""
    end
    return joined(parts)
end

-- --- purges

local function later(one, other)
    return one and (not other or one > other) and one or other
end

local function purged_at(path)
    local name = plain(path)
    local at = purges:get("p" .. name)
    if purges:get("wild") then
        for length = 1, #name do at = later(purges:get("w" .. name:sub(1, length)), at) end
    end
    return at
end

-- where an answer is kept, when it was asked for, and its tags
local function stored(key)
    local digest = ngx.md5(key)
    local name = edge.objects .. "/" .. digest:sub(-1) .. "/" .. digest:sub(-3, -2) .. "/" .. digest
    local file = io.open(name, "rb")
    if not file then return nil end
    local head = file:read(HEAD_BYTES) or ""
    file:close()
    return name, tonumber(head:match("\r\nX%-Headroom%-At: ([%d.]+)\r\n")), head:match("\r\nX%-Headroom%-Tags: ([^\r\n]*)\r\n") or ""
end

local function drop_purged(key, path)
    local limit, tagged = purged_at(path), purges:get("tags")
    if not limit and not tagged then return end
    local name, at, tags = stored(key)
    if not name then return end
    for tag in (tagged and tags or ""):gmatch("%S+") do limit = later(purges:get("t" .. tag), limit) end
    if not at or limit and at <= limit then os.remove(name) end
end

local function lifetime() return edge.inactive_s + MANAGER_S end

-- a dictionary that is full forgets nothing: all is purged instead
local function remember(name, at, ttl)
    local flag = name:sub(1, 1) == "w" and "wild" or name:sub(1, 1) == "t" and "tags" or nil
    if purges:safe_set(name, at, ttl) and (not flag or purges:safe_set(flag, at, ttl)) then return end
    purges:flush_all()
    purges:flush_expired()
    purges:set("w/", at, ttl)
    purges:set("wild", at, ttl)
end

-- the purges in the file, each with its moment and that at which nginx was last seen to start with it
local function noted()
    local file, found = io.open(edge.purges, "r"), {}
    if not file then return found end
    for line in file:lines() do
        local at, seen, name = line:match("^([%d.]+) ([%d.]+) (%S+)$")
        if at then found[#found + 1] = { at = tonumber(at), seen = tonumber(seen), name = ngx.unescape_uri(name) } end
    end
    file:close()
    return found
end

local function line_of(at, seen, name) return string.format("%.3f %.3f %s\n", at, seen, ngx.escape_uri(name)) end

local function compact(premature, started)
    if premature then return end
    local lines, now = {}, ngx.now()
    for _, one in ipairs(noted()) do
        local seen = started and now or one.seen
        if seen >= now - lifetime() then lines[#lines + 1] = line_of(one.at, seen, one.name) end
    end
    local file = io.open(edge.purges .. ".new", "w")
    if not file then return end
    local written = file:write(table.concat(lines))
    if file:close() and written then os.rename(edge.purges .. ".new", edge.purges) end
end

local function record(names)
    ngx.update_time()
    local now, lines = ngx.now(), {}
    for _, name in ipairs(names) do lines[#lines + 1] = line_of(now, now, name) end
    local file, problem = io.open(edge.purges, "a")
    if not file then return problem end
    local written, why = file:write(table.concat(lines))
    local closed, how = file:close()
    if not written or not closed then return why or how end
    for _, name in ipairs(names) do remember(name, now, lifetime()) end
end

-- PURGE of a path, of all paths that begin alike where it ends with a star, or of the tags that a header names
function M.purge()
    local given, names = ngx.req.get_headers(0), {}
    local tags = text_of(given["cache-tag"]) or text_of(given["surrogate-key"])
    if tags then
        for tag in tags:gmatch("[^%s,]+") do names[#names + 1] = "t" .. tag end
    else
        local path = path_of(ngx.var.request_uri)
        names[1] = path:sub(-1) == "*" and "w" .. plain(path:sub(1, -2)) or "p" .. plain(path)
    end
    if #names == 0 then return answer(400, "no tag is named") end
    local problem = record(names)
    if problem then
        ngx.log(ngx.ERR, "a purge cannot be noted: ", problem)
        return answer(500, "the purge cannot be noted")
    end
    return answer(200, "purged")
end

-- --- the outer server

local function country_of()
    local found
    if edge.country_header then
        found = ngx.var.headroom_trusted == "1" and ngx.var["http_" .. edge.country_header] or nil
    elseif edge.country_networks then
        found = ngx.var.headroom_country
    end
    return found ~= "" and found or nil
end

local function refuse(status, text)
    secure()
    return answer(status, text)
end

function M.request()
    local var, method = ngx.var, ngx.req.get_method()
    local path, query = var.request_uri:match("^([^?]*)%??(.*)$")
    local country, agent = country_of(), (var.http_user_agent or ""):lower()
    local denied = first(edge.deny, path, country, agent)
    if denied then return refuse(denied.status, "denied") end
    local number = #edge.behaviors
    for index, behavior in ipairs(edge.behaviors) do
        if matches(behavior.path, path) then
            number = index
            break
        end
    end
    local behavior = edge.behaviors[number]
    if var.scheme == "http" and behavior.policy ~= "allow-all" then
        if behavior.policy == "https-only" then return refuse(403, "use HTTPS") end
        secure()
        local port = edge.https_port == 443 and "" or ":" .. edge.https_port
        ngx.header["Cache-Control"] = "no-store"
        local status = (method == "GET" or method == "HEAD") and 301 or 307
        return ngx.redirect("https://" .. var.host .. port .. var.request_uri, status)
    end
    if not has(behavior.methods, method) then
        ngx.header["Allow"] = table.concat(behavior.methods, ", ")
        return refuse(405, "this method is not let through")
    end
    local route = first(edge.routes, path, country, agent)
    local target = route and route.target or behavior.target
    local arguments, cookies = split(query, "[^&]+"), split(var.http_cookie or "", "[^;%s][^;]*")
    local sent = table.concat(chosen(arguments, behavior.arguments), "&")
    local asked = path == "/" and edge.root ~= "" and "/" .. edge.root or path
    var.headroom_uri = asked .. (sent ~= "" and "?" .. sent or "")
    var.headroom_cookie = table.concat(chosen(cookies, behavior.cookies), "; ")
    var.headroom_inner = (number - 1) .. "," .. target .. "," .. var.scheme
    if behavior.max_s > 0 and (method == "GET" or method == "HEAD") then
        local key = key_of(behavior, target, path, arguments, cookies)
        var.headroom_key = key
        drop_purged(key, path)
        if passed:get(ngx.md5(key)) then var.headroom_pass = "1" end
    end
    return ngx.exec("@behavior_" .. (number - 1))
end

local SHOWN = { UPDATING = "STALE" }

-- what viewers are told, over what the origin says
function M.header()
    local header, var = ngx.header, ngx.var
    local at, kept = tonumber(header["X-Headroom-At"]), header["X-Headroom-Cache-Control"]
    local state = var.upstream_cache_status
    secure()
    if at then
        if header["Cache-Control"] == "no-store" and (state == "MISS" or state == "EXPIRED") and ngx.status < 500 then
            passed:set(ngx.md5(var.headroom_key), true, PASS_S)
        end
        header["Cache-Control"] = kept
        if state == "HIT" or state == "STALE" or state == "UPDATING" then
            header["Age"] = math.max(0, math.floor((tonumber(header["Age"]) or 0) + ngx.now() - at))
        end
        header["X-Cache"] = SHOWN[state] or state or "BYPASS"
        header["X-Headroom-At"], header["X-Headroom-Tags"], header["X-Headroom-Cache-Control"] = nil, nil, nil
        if ngx.status < 400 then
            local path = path_of(var.request_uri)
            for _, rule in ipairs(edge.cache_control) do
                if matches(rule.path, path) then
                    header["Cache-Control"] = rule.value
                    break
                end
            end
        end
    elseif ngx.status >= 400 then
        header["Cache-Control"] = "no-store"
    end
end

-- --- the inner server

local function inner()
    local number, target, scheme = (ngx.var.http_x_headroom or ""):match("^(%d+),(%d+),(https?)$")
    return tonumber(number), tonumber(target), scheme
end

function M.target()
    local number, target, scheme = inner()
    if not target or not edge.behaviors[number + 1] or not edge.targets[target + 1] then return ngx.exit(404) end
    ngx.var.headroom_scheme = scheme
    return ngx.exec("@target_" .. target)
end

-- the headers of an origin, and none of another's
function M.origin(index)
    for _, name in ipairs(edge.header_names) do ngx.req.clear_header(name) end
    local origin = edge.origins[index + 1]
    for _, one in ipairs(origin.headers) do ngx.req.set_header(one.name, one.value) end
    local host = ngx.var.http_x_headroom_host
    ngx.var.headroom_host = host ~= nil and host ~= "" and host or origin.domain
end

local function said_s(control, expires, date)
    local found = control:match("s%-maxage=\"?(%d+)") or (" " .. control):match("[%s,]max%-age=\"?(%d+)")
    if found then return tonumber(found) end
    if expires then
        local ends = ngx.parse_http_time(expires)
        return ends and ends - (date and ngx.parse_http_time(date) or ngx.time()) or 0
    end
end

-- how long an answer is kept, in seconds
local function kept_s(behavior, control)
    local header, status, var = ngx.header, ngx.status, ngx.var
    if behavior.max_s == 0 or header["Set-Cookie"] or (text_of(header["Vary"]) or ""):find("*", 1, true) then return 0 end
    if not KEPT[status] and not KEPT_IF_SAID[status] then return 0 end
    local open = control:find("public", 1, true) or control:find("s-maxage", 1, true) or control:find("must-revalidate", 1, true)
    if var.http_authorization and not behavior.by_authorization and not open then return 0 end
    local said = said_s(control, text_of(header["Expires"]), var.upstream_http_date)
    if not said and KEPT_IF_SAID[status] then return 0 end
    if control:find("no-store", 1, true) or control:find("no-cache", 1, true) or control:find("private", 1, true) then
        return behavior.min_s
    end
    local rest = said and said - (tonumber(text_of(header["Age"])) or 0) or behavior.default_s
    return math.min(behavior.max_s, math.max(behavior.min_s, rest))
end

function M.inner_header()
    local header = ngx.header
    local number = inner()
    local behavior = number and edge.behaviors[number + 1]
    if not behavior then return end
    local given = text_of(header["Cache-Control"])
    local control = (given or ""):lower()
    local tags = {}
    for _, name in ipairs({ "Cache-Tag", "Surrogate-Key" }) do
        for tag in (text_of(header[name]) or ""):gmatch("[^%s,]+") do
            if #tags < MOST_TAGS then tags[#tags + 1] = tag end
        end
        header[name] = nil
    end
    local age_s = kept_s(behavior, control)
    -- an answer with more tags than can be kept could not be purged by all of them
    if #tags == MOST_TAGS then age_s = 0 end
    local stale_s = edge.stale_s
    if control:find("must-revalidate", 1, true) or control:find("proxy-revalidate", 1, true) then stale_s = 0 end
    stale_s = tonumber(control:match("stale%-while%-revalidate=(%d+)")) or stale_s
    header["X-Headroom-At"] = string.format("%.3f", ngx.req.start_time())
    header["X-Headroom-Tags"] = #tags > 0 and table.concat(tags, " ") or nil
    header["X-Headroom-Cache-Control"] = given
    header["Cache-Control"] = age_s > 0 and string.format("max-age=%d, stale-while-revalidate=%d", age_s, stale_s) or "no-store"
end

-- --- life

function M.init(description)
    edge = description
    -- after a start the time in which nobody asks for something begins anew, and so does that of its purges
    for _, one in ipairs(noted()) do remember(one.name, one.at, lifetime()) end
    return M
end

function M.start()
    if ngx.worker.id() ~= 0 then return end
    if purges:add("started", true) then compact(false, true) end
    ngx.timer.every(3600, compact)
end

return M
"""
