import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.List;
import java.util.stream.Collectors;

/** The JDK's own client as it comes: it offers HTTP/2 with the first request to an address. */
public class Chat {
    static final String QUESTION =
        "{\"model\":\"demo\",\"temperature\":0,\"max_tokens\":64,\"stream\":%s,"
            + "\"messages\":[{\"role\":\"user\",\"content\":\"What is the capital of France?\"}]}";

    static HttpRequest request(boolean stream) {
        return HttpRequest.newBuilder(URI.create(System.getenv("CHAT_URL") + "/v1/chat/completions"))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(QUESTION.formatted(stream)))
            .build();
    }

    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        HttpResponse<String> whole = client.send(request(false), HttpResponse.BodyHandlers.ofString());
        String again = client.send(request(false), HttpResponse.BodyHandlers.ofString()).body();
        List<String> events = HttpClient.newHttpClient()
            .send(request(true), HttpResponse.BodyHandlers.ofLines())
            .body()
            .filter(line -> line.startsWith("data: {"))
            .map(line -> line.substring("data: ".length()))
            .collect(Collectors.toList());
        System.out.println(
            "{\"status\":" + whole.statusCode() + ",\"whole\":" + whole.body() + ",\"again\":" + again
                + ",\"events\":[" + String.join(",", events) + "]}");
    }
}
