// What a user of @sensenet/client-core does, against a running server. Each line that this prints is a
// step: its name, and the answer, or the message and the status of the error that the client threw.
//
//     node sensenet.mjs FOLDER_WITH_NODE_MODULES URL ADMIN_KEY USER1_KEY

import { createRequire } from 'node:module'

const [folder, repositoryUrl, adminKey, user1Key] = process.argv.slice(2)
const { Repository } = createRequire(`${folder}/`)('@sensenet/client-core')

const BLOG = '/Root/Content/Blog'
const SECURE = '/Root/Content/MySecureFolder'
const USER1 = '/Root/IMS/Public/User1'

function repositoryOf(key) {
  const fetchWithKey = (request) => {
    request.headers.set('apikey', key)
    return fetch(request)
  }
  return new Repository({ repositoryUrl }, key ? fetchWithKey : fetch)
}

async function step(name, promise) {
  let result
  try {
    result = { answer: await promise }
  } catch (error) {
    result = { error: error.message, status: error.statusCode }
  }
  console.log(JSON.stringify({ step: name, ...result }))
  return result.answer
}

const get = (name, idOrPath, oDataOptions) => ({ name, idOrPath, method: 'GET', oDataOptions })
const post = (name, idOrPath, body) => ({ name, idOrPath, method: 'POST', body })

const visitor = repositoryOf(null)
const user1 = repositoryOf(user1Key)
const admin = repositoryOf(adminKey)

await step('visitor loads public content', visitor.load({ idOrPath: BLOG }))
await step('visitor loads public content by its id', visitor.load({ idOrPath: 2002 }))
await step('visitor loads a public collection', visitor.loadCollection({ path: BLOG }))
await step('visitor loads the secure folder', visitor.load({ idOrPath: SECURE }))
await step('visitor loads the secure collection', visitor.loadCollection({ path: SECURE }))
await step('user loads the secure folder', user1.load({ idOrPath: SECURE }))
await step('user loads the secure collection', user1.loadCollection({ path: SECURE }))
const once = { requestInit: { headers: { apikey: user1Key } } }
await step('key for one request', visitor.load({ idOrPath: SECURE, ...once }))
await step('user loads what is not there', user1.load({ idOrPath: '/Root/Content/Nothing' }))

await step('current user: visitor', visitor.executeAction(get('GetCurrentUser', '/Root')))
await step('current user: user', user1.executeAction(get('GetCurrentUser', '/Root')))
await step('current user: admin', admin.executeAction(get('GetCurrentUser', '/Root')))

const created = await step('create', user1.executeAction(post('CreateApiKey', USER1)))
await step('use at once', repositoryOf(created?.Value).load({ idOrPath: SECURE }))
await step('list', user1.executeAction(get('GetApiKeys', USER1)))
await step('list the first', user1.executeAction(get('GetApiKeys', USER1, { top: 1 })))
await step('list another user', user1.executeAction(get('GetApiKeys', '/Root/IMS/Public/User2')))
await step('create for another user', user1.executeAction(post('CreateApiKey', '/Root/IMS/Public/User2')))
await step('create for nobody', user1.executeAction(post('CreateApiKey', '/Root/IMS/Public/Nobody')))
await step('delete', user1.executeAction(post('DeleteApiKey', USER1, { apiKey: created?.Value })))
await step('use a deleted one', repositoryOf(created?.Value).load({ idOrPath: SECURE }))

const second = await step('create by id', user1.executeAction(post('CreateApiKey', 1001, {})))
await step('delete by id', user1.executeAction(post('DeleteApiKey', '/Root', { apiKey: second?.Id })))
await step('use one deleted by id', repositoryOf(second?.Value).load({ idOrPath: BLOG }))
await step('delete without saying which', user1.executeAction(post('DeleteApiKey', USER1, {})))
await step('list what is left', user1.executeAction(get('GetApiKeys', 1001)))

await step('user deletes all', user1.executeAction(post('DeleteApiKeys', '/Root')))
await step('user deletes all of a user', user1.executeAction(post('DeleteApiKeys', USER1)))
await step('user after that', user1.load({ idOrPath: SECURE }))
await step('admin deletes all of a user', admin.executeAction(post('DeleteApiKeys', USER1)))
await step('user whose keys are deleted', user1.load({ idOrPath: BLOG }))
await step('admin after that', admin.load({ idOrPath: SECURE }))
