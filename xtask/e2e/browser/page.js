// A page of a site: it does what the test orders, one order after the other. Each request for an order
// carries what came of the one before; the first, that the page is shown.
'use strict'

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
const made = []
const calls = []
let analytics

const orders = {
  // Loads the library as a site does that has nothing else of Segment: `segment` holds the host.
  async load(writeKey, segment) {
    [analytics] = await AnalyticsNext.AnalyticsBrowser.load(
      { writeKey, cdnSettings: { integrations: { 'Segment.io': { apiKey: writeKey } } } },
      { integrations: { 'Segment.io': segment } },
    )
    analytics.on('dispatch_start', (context) => made.push(context.event.messageId))
    analytics.on('error', (error) => console.error(error.code, error.reason))
  },

  // Makes events, returns the ids that the library gave them, and does not wait for what becomes of them.
  async track(count, paceMs) {
    const before = made.length
    for (let index = 0; index < count; index++) {
      const properties = { conversation_id: `c-${made.length}`, channel: 'chat', initiated_type: 'customer_initiated' }
      calls.push(analytics.track('Conversation Started', properties))
      if (paceMs > 0) await pause(paceMs)
    }
    return made.slice(before)
  },

  // Waits until each event has been tried once.
  async tried() {
    await Promise.all(calls)
  },

  // Returns the message ids of the events that the library has left in the site's storage.
  left() {
    const queues = Object.keys(localStorage).filter((key) => key.endsWith(':items'))
    return queues.flatMap((key) => JSON.parse(localStorage[key])).map((context) => context.event.messageId)
  },

  // Goes to another page, which answers for this one. Not in the turn in which an event was made: the
  // library takes it into its queue in the next one.
  visit(path) {
    setTimeout(() => location.assign(path))
    return new Promise(() => {})
  },
}

async function obey() {
  let outcome = {}
  for (;;) {
    const answer = await fetch('/order', { method: 'POST', body: JSON.stringify(outcome) })
    const [name, ...details] = await answer.json()
    try {
      outcome = { result: await orders[name](...details) }
    } catch (error) {
      outcome = { error: `${name}: ${error.stack}` }
    }
  }
}

obey()
