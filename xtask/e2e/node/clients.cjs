// Sends events with one of the JavaScript SDKs for servers, as an application would.
//
// Arguments: client, host, write key, events per half, file for the report. The first half is sent at
// once, the second after a line on the input. At the next line the SDK is flushed and the report
// written: the ids that the application knows, and the errors that the SDK told it. The process ends
// with its input. Nothing of an SDK's defaults is changed but the host.
'use strict'

const fs = require('node:fs')
const { randomUUID } = require('node:crypto')
const readline = require('node:readline')

const PACE_MS = 10
const CLOSE_TIMEOUT_MS = 60_000

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// A client is `track(id, event)` and `flush()`, and `sent` where the SDK makes ids of its own.
const clients = {
  'segment-node'(host, writeKey, errors) {
    const { Analytics } = require('@segment/analytics-node')
    const analytics = new Analytics({ writeKey, host })
    analytics.on('error', (error) => errors.push(String(error.reason?.message ?? error.code ?? error)))
    return {
      track: (messageId, event) => analytics.track({ messageId, ...event }),
      flush: () => analytics.closeAndFlush({ timeout: CLOSE_TIMEOUT_MS }),
    }
  },

  'segment-node-legacy'(host, writeKey, errors) {
    const Analytics = require('analytics-node')
    return withCallbacks(new Analytics(writeKey, { host, errorHandler: () => {} }), errors)
  },

  'rudder-node'(dataPlaneUrl, writeKey, errors) {
    const Analytics = require('@rudderstack/rudder-sdk-node')
    return withCallbacks(new Analytics(writeKey, { dataPlaneUrl, errorHandler: () => {} }), errors)
  },

  // The capture mode comes from the environment.
  'posthog-node'(host, writeKey, errors) {
    const { PostHog } = require('posthog-node')
    const posthog = new PostHog(writeKey, { host })
    posthog.on('error', (error) => errors.push(String(error)))
    return {
      track: (uuid, { userId, event, properties }) =>
        posthog.capture({ distinctId: userId, event, properties, uuid }),
      flush: () => posthog.shutdown(CLOSE_TIMEOUT_MS),
    }
  },

  // This SDK never tries again; what it offers for that is its option `fetch`. It makes its own ids,
  // which the application sees in what it fetches.
  jitsu(host, writeKey, errors) {
    const { jitsuAnalytics, emptyRuntime } = require('@jitsu/js')
    const sent = new Set()
    const pending = new Set()
    const fetchUntilTaken = async (url, options) => {
      sent.add(JSON.parse(options.body).messageId)
      for (let attempt = 1; ; attempt++) {
        try {
          const answer = await fetch(url, options)
          if (answer.ok || (answer.status !== 429 && answer.status < 500)) return answer
          await pause(1000 * Number(answer.headers.get('retry-after') ?? 1))
        } catch (error) {
          if (attempt >= 10) throw error
          await pause(100 * attempt)
        }
      }
    }
    const jitsu = jitsuAnalytics({
      host, writeKey, s2s: true, fetch: fetchUntilTaken, runtime: emptyRuntime({}), errorPolicy: 'throw',
    })
    return {
      track(_, { userId, event, properties }) {
        const call = jitsu.track(event, properties, { userId })
          .catch((error) => errors.push(String(error)))
          .finally(() => pending.delete(call))
        pending.add(call)
      },
      flush: () => Promise.all(pending),
      sent,
    }
  },
}

// Both SDKs of this family tell by a callback that an event is delivered or given up.
function withCallbacks(analytics, errors) {
  const open = new Set()
  return {
    track(messageId, event) {
      open.add(messageId)
      analytics.track({ messageId, ...event }, (error) => {
        open.delete(messageId)
        if (error) errors.push(String(error))
      })
    },
    async flush() {
      const deadline = Date.now() + CLOSE_TIMEOUT_MS
      while (open.size > 0 && Date.now() < deadline) {
        analytics.flush()
        await pause(50)
      }
    },
  }
}

async function main(name, host, writeKey, half, reportPath) {
  const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]()
  const errors = []
  const client = clients[name](host, writeKey, errors)
  const ids = []
  const send = async () => {
    for (let index = 0; index < Number(half); index++) {
      const id = randomUUID()
      const event = {
        userId: `user-${index % 7}`,
        event: 'Conversation Started',
        properties: { conversation_id: `c-${ids.length}`, channel: 'chat', initiated_type: 'customer_initiated' },
      }
      client.track(id, event)
      ids.push(id)
      await pause(PACE_MS)
    }
  }
  await send()
  await lines.next()
  await send()
  await lines.next()
  await client.flush()
  const sent = client.sent ? [...client.sent] : ids
  fs.writeFileSync(`${reportPath}.partial`, JSON.stringify({ sent, errors }))
  fs.renameSync(`${reportPath}.partial`, reportPath)
  while (!(await lines.next()).done);
  process.exit(0)
}

main(...process.argv.slice(2)).catch((error) => {
  console.error(error)
  process.exit(1)
})
