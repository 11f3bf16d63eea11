import static dev.langchain4j.model.chat.Capability.RESPONSE_FORMAT_JSON_SCHEMA;

import com.fasterxml.jackson.databind.ObjectMapper;
import dev.langchain4j.agent.tool.P;
import dev.langchain4j.agent.tool.Tool;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.openai.OpenAiChatModel;
import dev.langchain4j.model.openai.OpenAiStreamingChatModel;
import dev.langchain4j.service.AiServices;
import dev.langchain4j.service.TokenStream;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;

/** LangChain4j: a chat model, a stream, an object, and services with a tool. */
public class Assistant {
    static final String CHAT = System.getenv("CHAT_URL") + "/v1";
    static final String TOOLS = System.getenv("TOOLS_URL") + "/v1";

    record Person(String name, int age) {}

    interface Reader {
        Person personFrom(String text);
    }

    interface Helper {
        String chat(String message);
    }

    interface StreamingHelper {
        TokenStream chat(String message);
    }

    static class Weather {
        final List<String> askedFor = new ArrayList<>();

        @Tool("The weather of a place.")
        String get_weather(@P("the city") String city) {
            askedFor.add(city);
            return "sunny";
        }
    }

    static OpenAiChatModel.OpenAiChatModelBuilder model(String url) {
        return OpenAiChatModel.builder().baseUrl(url).apiKey("none").modelName("demo").temperature(0.0).maxRetries(0);
    }

    static OpenAiStreamingChatModel.OpenAiStreamingChatModelBuilder streaming(String url) {
        return OpenAiStreamingChatModel.builder().baseUrl(url).apiKey("none").modelName("demo").temperature(0.0);
    }

    static String read(TokenStream stream, StringBuilder text) throws Exception {
        CompletableFuture<ChatResponse> whole = new CompletableFuture<>();
        stream.onPartialResponse(text::append)
            .onCompleteResponse(whole::complete)
            .onError(whole::completeExceptionally)
            .start();
        return whole.get(60, TimeUnit.SECONDS).aiMessage().text();
    }

    public static void main(String[] arguments) throws Exception {
        String question = "What is the capital of France?";
        Map<String, Object> answer = new LinkedHashMap<>();

        ChatResponse response = model(CHAT).maxTokens(64).build().chat(UserMessage.from(question));
        answer.put("text", response.aiMessage().text());
        answer.put("usage", response.tokenUsage().totalTokenCount());

        StringBuilder streamed = new StringBuilder();
        StreamingHelper talker = AiServices.create(StreamingHelper.class, streaming(CHAT).maxTokens(64).build());
        answer.put("streamed_text", read(talker.chat(question), streamed));
        answer.put("streamed", streamed.toString());

        OpenAiChatModel strict = model(CHAT)
            .maxTokens(100)
            .supportedCapabilities(RESPONSE_FORMAT_JSON_SCHEMA)
            .strictJsonSchema(true)
            .build();
        answer.put("parsed", AiServices.create(Reader.class, strict).personFrom("Ada is 36 years old."));

        Weather weather = new Weather();
        Helper helper = AiServices.builder(Helper.class).chatModel(model(TOOLS).build()).tools(weather).build();
        answer.put("forecast", helper.chat("What is the weather in Paris?"));
        StreamingHelper streamer =
            AiServices.builder(StreamingHelper.class).streamingChatModel(streaming(TOOLS).build()).tools(weather).build();
        StringBuilder forecast = new StringBuilder();
        answer.put("streamed_forecast", read(streamer.chat("What is the weather in Paris?"), forecast));
        answer.put("streamed_tokens", forecast.toString());
        answer.put("asked_for", weather.askedFor);

        System.out.println(new ObjectMapper().writeValueAsString(answer));
    }
}
