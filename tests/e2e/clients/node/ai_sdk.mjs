import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const prompt = "What is the capital of France?";
const schema = z.object({ name: z.string(), age: z.int() });

async function run(chat, caller) {
  const askedFor = [];
  const tools = {
    get_weather: tool({
      description: "Get the weather in a location",
      inputSchema: z.object({ city: z.string().describe("The city to get the weather for") }),
      execute: async ({ city }) => {
        askedFor.push(city);
        return { city, weather: "sunny" };
      },
    }),
  };
  const options = { model: chat, prompt, temperature: 0, maxOutputTokens: 64, maxRetries: 0 };
  const whole = await generateText(options);
  const stream = streamText(options);
  let streamed = "";
  for await (const text of stream.textStream) streamed += text;

  const ask = { model: caller, tools, stopWhen: stepCountIs(5), prompt: "What is the weather in Paris?", maxRetries: 0 };
  const agent = await generateText(ask);
  const streamedAgent = streamText(ask);
  await streamedAgent.consumeStream();

  const person = { model: chat, prompt: "Ada is 36 years old. Give name and age as JSON.", temperature: 0, maxOutputTokens: 100, maxRetries: 0 };
  const generated = await generateObject({ ...person, schema });
  const output = await generateText({ ...person, output: Output.object({ schema }) });

  return {
    text: whole.text,
    usage: whole.usage.totalTokens,
    finish_reason: whole.finishReason,
    streamed,
    streamed_usage: (await stream.usage).totalTokens,
    warnings: [whole, agent, generated, output].flatMap((result) => result.warnings ?? []),
    steps: agent.steps.map((step) => step.finishReason),
    calls: agent.steps[0].toolCalls.map((call) => [call.toolName, call.input]),
    asked_for: askedFor,
    forecast: agent.text,
    streamed_forecast: await streamedAgent.text,
    parsed: generated.object,
    output: output.output,
  };
}

const at = (url) => ({ baseURL: `${url}/v1`, apiKey: "none" });
const openai = [process.env.CHAT_URL, process.env.TOOLS_URL].map((url) => createOpenAI(at(url)));
const compatible = [process.env.CHAT_URL, process.env.TOOLS_URL].map((url) =>
  createOpenAICompatible({ name: "local", supportsStructuredOutputs: true, includeUsage: true, ...at(url) }),
);

console.log(
  JSON.stringify({
    compatible: await run(...compatible.map((provider) => provider("demo"))),
    chat: await run(...openai.map((provider) => provider.chat("demo"))),
    responses: await run(...openai.map((provider) => provider("demo"))),
  }),
);
