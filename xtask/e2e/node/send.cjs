// Sends events with `@segment/analytics-node` as an application would, until its input closes.
//
// Arguments: host, write key, file with one event per line, file for the report. Only the host
// differs from the SDK's defaults. (How long `closeAndFlush` may take is an argument of the call:
// its default gives up on events that are still being retried.)
'use strict'

const fs = require('node:fs')
const readline = require('node:readline')
const { Analytics } = require('@segment/analytics-node')

const PACE_MS = 10
const CLOSE_TIMEOUT_MS = 150_000

async function main(host, writeKey, eventsPath, reportPath) {
  let closed = false
  process.stdin.on('end', () => { closed = true }).resume()

  const analytics = new Analytics({ writeKey, host })
  const givenUp = []
  analytics.on('error', (error) => givenUp.push(String(error.reason?.message ?? error.code ?? error)))

  const sent = []
  const lines = readline.createInterface({ input: fs.createReadStream(eventsPath) })
  for await (const line of lines) {
    if (closed) break
    const event = JSON.parse(line)
    analytics.track({
      messageId: event.messageId,
      userId: event.userId,
      event: event.event,
      properties: event.properties,
      timestamp: event.timestamp,
    })
    sent.push(event.messageId)
    await new Promise((resolve) => setTimeout(resolve, PACE_MS))
  }
  while (!closed) await new Promise((resolve) => setTimeout(resolve, 50))
  await analytics.closeAndFlush({ timeout: CLOSE_TIMEOUT_MS })
  fs.writeFileSync(reportPath, JSON.stringify({ sent, given_up: givenUp }))
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error)
  process.exit(1)
})
