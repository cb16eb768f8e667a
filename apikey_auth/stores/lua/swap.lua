-- ARGV: epoch, id, owner, unrevoked, ends, version, record, digest, and the same of a successor as add.lua takes.
-- Answers 0 if it is too late, 1 if it was done, 2 for a duplicate; and whether there are marks.

local _, id, owner, unrevoked, ends, version, record, digest = unpack(ARGV, 1, 8)
local successor = ARGV[9]

-- The version that readers see: a mark that is still to be written into the record counts as one more.
local function seen_version(settled, before)
  local marks = call('GET', MARKS)
  if marks and before.revoked_at == cjson.null then
    for line in string.gmatch(marks, '[^\n]+') do
      local mark = cjson.decode(line)
      if mark[1] > tonumber(settled) and (mark[3] == cjson.null or mark[3] == before.owner) then
        return before.version + 1
      end
    end
  end
  return before.version
end

local stored = call('GET', record_of(id))
if not stored then
  return {0, is_marked()}
end
local settled, header = string.match(stored, '^(%d+) ([^\n]+)\n')
local before = {}
before.owner, before.version, before.revoked_at, before.digest = unpack(cjson.decode(header))
if seen_version(settled, before) ~= tonumber(version) or before.digest ~= digest then
  return {0, is_marked()}
end
if successor and call('EXISTS', record_of(successor)) == 1 then
  return {2, is_marked()}
end

local now = advance()
count_out(before.owner, id)
if before.owner ~= owner then
  call('ZREM', NAMESPACE .. 'ids:' .. before.owner, id)
end
write(now, id, owner, unrevoked, ends, record)
call('ZADD', NAMESPACE .. 'changed', now, id)
if successor then
  local _, of, open, dies, used, made = unpack(ARGV, 9)
  write(now, successor, of, open, dies, made)
  note_use(successor, used)
end
return {1, is_marked()}
