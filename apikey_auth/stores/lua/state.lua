-- What every script here begins with: the names of the keys, the state, and the indexes over the records.
--
-- All keys of a namespace have one hash tag, so that they live in one slot of a cluster: KEYS[1] stands for
-- them all. ARGV[1] is a random text, the epoch if this is the first that is ever asked of the namespace.

local call = redis.call
local STATE = KEYS[1]
local NAMESPACE = string.sub(STATE, 1, -#'state' - 1)
local MARKS = NAMESPACE .. 'marks'

if call('EXISTS', STATE) == 0 then
  call('HSET', STATE, 'epoch', ARGV[1], 'revision', 0, 'floor', 0, 'generation', 0, 'unrevoked', 0)
end

local function record_of(id)
  return NAMESPACE .. 'key:' .. id
end

local function revision()
  return call('HGET', STATE, 'revision')
end

local function advance()
  call('HINCRBY', STATE, 'revision', 1)
  return revision()
end

local function is_marked()
  return call('EXISTS', MARKS)
end

-- Each writing of a record has a higher revision in front than the one before, so that this tells whether
-- the record is the one that was read.
local function is_still(id, settled)
  return call('GETRANGE', record_of(id), 0, #settled) == settled .. ' '
end

-- The ids of what is not revoked, by owner, in a set for each; and a set of the owners who have one.
local function worklist(name, owner)
  local owners = NAMESPACE .. 'unrevoked:' .. name
  return owner and owners .. ':' .. owner or owners
end

-- An owner with no more ids on a list goes from it.
local function strike_owner(name, owner)
  if call('EXISTS', worklist(name, owner)) == 0 then
    call('SREM', worklist(name), owner)
  end
end

local function count_out(owner, id)
  local generation = call('HGET', STATE, 'generation')
  if call('SREM', worklist(generation, owner), id) == 1 then
    call('HINCRBY', STATE, 'unrevoked', -1)
    strike_owner(generation, owner)
  end
end

local function count_in(owner, id)
  local generation = call('HGET', STATE, 'generation')
  call('SADD', worklist(generation, owner), id)
  call('SADD', worklist(generation), owner)
  call('HINCRBY', STATE, 'unrevoked', 1)
end

local function set_end(id, ends)
  if ends == '' then
    call('ZREM', NAMESPACE .. 'ends', id)
  else
    call('ZADD', NAMESPACE .. 'ends', ends, id)
  end
end

-- Write a record, and the indexes that tell of it. ``unrevoked`` is '1' or '0'.
local function write(settled, id, owner, unrevoked, ends, record)
  call('SET', record_of(id), settled .. ' ' .. record)
  call('ZADD', NAMESPACE .. 'ids', 0, id)
  call('ZADD', NAMESPACE .. 'ids:' .. owner, 0, id)
  set_end(id, ends)
  if unrevoked == '1' then
    count_in(owner, id)
  end
end

local function note_use(id, used)
  if used ~= '' then
    call('SET', NAMESPACE .. 'used:' .. id, used)
  end
end
