import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: `${process.env.CHAT_URL}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const options = { model: "demo", messages, temperature: 0, max_tokens: 64 };

const completion = await client.chat.completions.create(options);

let streamed = "";
let usage;
const stream = await client.chat.completions.create({ ...options, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

const helper = client.chat.completions.stream(options);
let helped = "";
helper.on("content", (delta) => (helped += delta));
const final = await helper.finalContent();

const Person = z.object({ name: z.string(), age: z.int() });
const parsed = await client.chat.completions.parse({
  model: "demo",
  messages: [{ role: "user", content: "Ada is 36 years old. Give name and age as JSON." }],
  response_format: zodResponseFormat(Person, "person"),
  temperature: 0,
  max_tokens: 100,
});

const response = await client.responses.create({
  model: "demo",
  input: messages[0].content,
  temperature: 0,
  max_output_tokens: 64,
});
let responded = "";
const events = await client.responses.create({
  model: "demo",
  input: messages[0].content,
  temperature: 0,
  max_output_tokens: 64,
  stream: true,
});
for await (const event of events) if (event.type === "response.output_text.delta") responded += event.delta;

const caller = new OpenAI({ baseURL: `${process.env.TOOLS_URL}/v1`, apiKey: "none", maxRetries: 0 });
const askedFor = [];
const getWeather = zodFunction({
  name: "get_weather",
  description: "The weather of a place.",
  parameters: z.object({ city: z.string() }),
  function: ({ city }) => {
    askedFor.push(city);
    return "sunny";
  },
});
const question = { model: "demo", messages: [{ role: "user", content: "How is the weather in Paris?" }], tools: [getWeather] };
const forecast = await caller.chat.completions.runTools(question).finalContent();
const streamedForecast = await caller.chat.completions.runTools({ ...question, stream: true }).finalContent();

console.log(
  JSON.stringify({
    text: completion.choices[0].message.content,
    usage: completion.usage.total_tokens,
    streamed,
    streamed_usage: usage.total_tokens,
    helped,
    helped_text: final,
    parsed: parsed.choices[0].message.parsed,
    response: response.output_text,
    streamed_response: responded,
    asked_for: askedFor,
    forecast,
    streamed_forecast: streamedForecast,
  }),
);
