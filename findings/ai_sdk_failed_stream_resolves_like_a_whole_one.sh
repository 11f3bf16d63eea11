#!/usr/bin/env bash
# In the AI SDK for JavaScript, an answer that breaks off with an error event is a text like any other.
#
# Package    ai 6.0.326 with @ai-sdk/openai-compatible 2.0.92 (npm), Node 20.
# Behaviour  An OpenAI-compatible server sends a piece of an answer, then an event with an error object, and ends the
#            stream. The loop over streamText's textStream ends as after a whole answer, and the promise `text` is
#            fulfilled with the piece; neither throws. Only `finishReason` ("error") and the callback onError differ,
#            and without a callback the error goes to console.error.
# Seen       textStream "The answer", text "The answer", finishReason "error". The openai packages for Python and
#            JavaScript, LangChain's and LiteLLM throw at the same event.
# Source     in ai's stream-text, an error chunk is a part of the full stream; textStream lets only text parts pass,
#            and the promises are fulfilled when the stream is flushed, with what there was by then.
# Effect     A program that reads textStream or text takes a truncated answer for a whole one: it shows it, stores it, or
#            gives it to the next step of an agent. maxRetries does not apply either, since the response had begun.
# Instead    Give onError, or read fullStream and throw at parts of type "error", or look at finishReason before using
#            the text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --no-package-lock ai@6.0.326 @ai-sdk/openai-compatible@2.0.92
cat >finding.mjs <<'JAVASCRIPT'
import assert from "node:assert";
import http from "node:http";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { streamText } from "ai";

const event = (object) => `data: ${JSON.stringify(object)}\n\n`;
const chunk = (delta, finish_reason = null) =>
  event({ id: "c", object: "chat.completion.chunk", created: 1, model: "m", choices: [{ index: 0, delta, finish_reason }] });
const failure = event({ error: { message: "overloaded", type: "server_error", param: null, code: "overloaded" } });
const whole = chunk({}, "stop") + "data: [DONE]\n\n";

async function ask(ending) {
  const server = http.createServer((request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    response.end(chunk({ role: "assistant", content: "The answer" }) + ending);
  });
  await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
  const baseURL = `http://127.0.0.1:${server.address().port}/v1`;
  const errors = [];
  const result = streamText({
    model: createOpenAICompatible({ name: "local", baseURL })("m"),
    prompt: "hi",
    onError: ({ error }) => errors.push(String(error?.message ?? error)),
  });
  let read = "";
  for await (const piece of result.textStream) read += piece;
  const seen = { read, text: await result.text, finishReason: await result.finishReason, errors };
  server.close();
  console.log(JSON.stringify(seen));
  return seen;
}

const good = await ask(whole);
assert.deepEqual([good.read, good.text, good.finishReason, good.errors.length], ["The answer", "The answer", "stop", 0]);
const broken = await ask(failure);
assert.equal(broken.read, "The answer", "changed: the loop over textStream is not as after a whole answer");
assert.equal(broken.text, "The answer", "changed: the promise of the text is not fulfilled with the piece");
assert.equal(broken.finishReason, "error", "changed: finishReason");
assert.equal(broken.errors.length, 1, "changed: onError is not called once");
console.log("as found: a stream that broke off with an error gives its text, and throws nothing");
JAVASCRIPT
node finding.mjs
