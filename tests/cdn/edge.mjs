// Runs a CloudFront Function over requests: node edge.mjs FUNCTION.mjs < {requests, origins}; prints one answer for each.
// The order of events is that of CloudFront: viewer request, and unless that is an answer, the origin's and viewer response.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const { requests, events } = JSON.parse(readFileSync(0, 'utf8'));
const { handler } = await import(pathToFileURL(process.argv[2]));

const answers = requests.map((given) => {
  globalThis.chosen = null;
  const headers = Object.fromEntries(Object.entries(given.headers).map(([name, value]) => [name, { value }]));
  let request = { method: 'GET', uri: given.path, querystring: {}, headers, cookies: {} };
  if (events.includes('viewer-request')) {
    const said = handler({ version: '1.0', context: { eventType: 'viewer-request' }, viewer: { ip: '192.0.2.1' }, request });
    if (said.statusCode) {
      return { status: said.statusCode, chosen: null, headers: said.headers, sent: null };
    }
    request = said;
  }
  let response = { statusCode: 200, headers: { 'cache-control': { value: 'the origin\'s' } }, cookies: {} };
  if (events.includes('viewer-response')) {
    response = handler({ version: '1.0', context: { eventType: 'viewer-response' }, viewer: { ip: '192.0.2.1' }, request, response });
  }
  return { status: null, chosen: globalThis.chosen, headers: response.headers, sent: request.headers };
});
console.log(JSON.stringify(answers));
