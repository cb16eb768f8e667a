-- ARGV: epoch, the most records. Answers nothing without marks, else the marks, and of records into which the
-- oldest is still to be written: the owner's list that each is on, its id, and itself.

local marks = call('GET', MARKS)
if not marks then
  return {}
end
local most = tonumber(ARGV[2])
local name = cjson.decode(string.match(marks, '[^\n]+'))[2]
local found = {marks}
local left = most
for _, owner in ipairs(call('SRANDMEMBER', worklist(name), most)) do
  if left == 0 then
    break
  end
  for _, id in ipairs(call('SRANDMEMBER', worklist(name, owner), left)) do
    found[#found + 1] = owner
    found[#found + 1] = id
    found[#found + 1] = call('GET', record_of(id))
    left = left - 1
  end
end
return found
