"""The dashboard of one pipe: its requests, its latency, and its rings, member by member."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from dashboards.panels import (
    GAUGE,
    TOKENS_A_SECOND,
    Column,
    Query,
    Row,
    heat_map,
    in_colours,
    labels_variable,
    lines,
    page,
    stat,
    table,
    threshold_setting,
)
from dashboards.queries import buckets, highest, increase, lowest, mean, quantile, rate, ratio, total

UID = "languagepipes-pipe"
PIPE = 'namespace="$namespace", pipe="$pipe"'
RING = f'{PIPE}, replica=~"$replica"'  # the members of the chosen replicas
END_MODEL = f'{RING}, role="end-model"'
MEMBERS = f'{RING}, role=~"end-model|stage"'
MEMBER = "{{role}} {{stage}}"  # end-model, stage 1, …
OF_REPLICA = "replica {{replica}}"

FIRST = "languagepipes_time_to_first_token_seconds"
BETWEEN = "languagepipes_time_between_tokens_seconds"
LAST = "languagepipes_time_to_last_token_seconds"
EXPIRY = "languagepipes_certificate_expiry_timestamp_seconds"
DAY = 86_400


def build() -> dashboard.Dashboard:
    return page(
        uid=UID,
        title="Language Pipes / Pipe",
        description="One pipe: requests, latency, KV, and each replica's ring member by member.",
        variables=[
            labels_variable("namespace", "Namespace", "The pipe's namespace.", EXPIRY, "namespace"),
            labels_variable("pipe", "Pipe", "The pipe's name.", f'{EXPIRY}{{namespace="$namespace"}}', "pipe"),
            labels_variable(
                "replica",
                "Replica",
                "The numbers of the pipe's replicas.",
                f"languagepipes_ring_ready{{{PIPE}}}",
                "replica",
                several=True,
                number=True,
            ),
        ],
        rows=[overview(), requests(), latency(), kv(), ring(), recovery(), members()],
    )


def overview() -> Row:
    accepts = highest("languagepipes_operator_pipe_condition", f'{PIPE}, condition="EndpointReady"')
    refused = increase("languagepipes_requests_total", f'{RING}, outcome="queue_full"')
    return Row(
        "Now",
        [
            stat(
                "Accepts requests",
                "The condition EndpointReady, as the operator's leader reports it. "
                "No: `kubectl describe lp NAME` has the reason and the remedy.",
                "none",
                Query(accepts),
                mappings={"1": ("Yes", "green"), "0": ("No", "red")},
            ),
            stat(
                "Rings up",
                "Replicas whose last ring health check passed, of all that are scraped. "
                "Fewer than all: the row Losses and recovery shows why rings end.",
                "none",
                Query(total("languagepipes_ring_ready", RING), "up"),
                Query(f"count(languagepipes_ring_ready{{{RING}}})", "of"),
            ),
            stat(
                "Generated tokens",
                "Tokens sampled a second, by all chosen replicas. "
                "Low while sequences run: see the ring's members and hops below.",
                TOKENS_A_SECOND,
                Query(rate("languagepipes_generated_tokens_total", RING)),
            ),
            stat(
                "Sequences running",
                "Sequences that hold KV blocks. As many as `maxConcurrentRequests` for long: add replicas.",
                "none",
                Query(total("languagepipes_running_sequences", RING)),
            ),
            stat(
                "Sequences waiting",
                "Admitted sequences that wait for KV blocks or a slot. Above 0 for long: add replicas or KV.",
                "none",
                Query(total("languagepipes_waiting_sequences", RING)),
                steps=[(1, "orange")],
            ),
            stat(
                "Requests refused",
                "Requests answered with 429 since the queue was full, within the time of one point. "
                "Above 0: add replicas, or let fewer clients ask at a time.",
                "none",
                Query(refused),
                steps=[(0.5, "red")],
            ),
            stat(
                "First token, 95 %",
                "Within this time 95 of 100 requests have their first token. "
                "Long: requests wait (above), or prompts are long (Tokens, below).",
                "s",
                Query(quantile(0.95, FIRST, RING)),
            ),
            stat(
                "First certificate ends in",
                "Until the first certificate of a member ends; it is renewed 30 days before. "
                "Less than 14 days: see LanguagePipesCertificateExpiring in the page on troubleshooting.",
                "s",
                Query(f"{lowest(EXPIRY, PIPE)} - time()"),
                steps=[(14 * DAY, "orange"), (29 * DAY, "green")],
                lowest="red",
            ),
        ],
    )


def requests() -> Row:
    return Row(
        "Requests",
        [
            lines(
                "Requests by outcome",
                "Requests that ended, by outcome. queue_full: the queue is too short or replicas too few; "
                "ring_down: see Losses and recovery; error: the End Model's log has the cause.",
                "reqps",
                Query(rate("languagepipes_requests_total", RING, "outcome"), "{{outcome}}"),
                stacked=True,
            ),
            lines(
                "Sequences running and waiting",
                "Running sequences hold KV blocks; waiting ones are the queue, for KV blocks or a slot. "
                "A queue that stays asks for more replicas.",
                "short",
                Query(total("languagepipes_running_sequences", RING), "running"),
                Query(total("languagepipes_waiting_sequences", RING), "waiting"),
            ),
            lines(
                "Tokens",
                "Prompt tokens of admitted requests, and tokens sampled, a second. "
                "Many prompt tokens beside few generated ones: prompts take the time.",
                TOKENS_A_SECOND,
                Query(rate("languagepipes_prompt_tokens_total", RING), "prompt"),
                Query(rate("languagepipes_generated_tokens_total", RING), "generated"),
            ),
        ],
    )


def latency() -> Row:
    shares = ((0.5, "50 %"), (0.95, "95 %"), (0.99, "99 %"))
    return Row(
        "Latency",
        [
            heat_map(
                "Time to first token",
                "From a request's admission to its first token; a stronger colour is more requests. "
                "Two bands: some requests wait, for the ring, KV blocks or a slot.",
                "s",
                buckets(FIRST, RING),
                width=12,
            ),
            heat_map(
                "Time between tokens",
                "Between two tokens of one request; a stronger colour is more tokens. "
                "It rises with the number of running sequences; otherwise look for a slow member or hop.",
                "s",
                buckets(BETWEEN, RING),
                width=12,
            ),
            lines(
                "Time to first token, by share of requests",
                "Within this time that share of requests has its first token. "
                "Too long: add replicas where requests wait, faster stages where prompts are long.",
                "s",
                *(Query(quantile(share, FIRST, RING), name) for share, name in shares),
                width=12,
            ),
            lines(
                "Time between tokens, by share of tokens",
                "Within this time that share of tokens follows the one before. "
                "Too long: fewer sequences at a time, or repair the slowest member or hop.",
                "s",
                *(Query(quantile(share, BETWEEN, RING), name) for share, name in shares),
                width=12,
            ),
            heat_map(
                "Time to last token",
                "From a request's admission to the end of its answer; a stronger colour is more answers. "
                "It is long for long answers: compare it with the time between tokens.",
                "s",
                buckets(LAST, RING),
                width=12,
            ),
            lines(
                "Time to last token, by share of answers",
                "Within this time that share of answers is complete. "
                "Too long: add replicas where requests wait, or bound `max_tokens`.",
                "s",
                *(Query(quantile(share, LAST, RING), name) for share, name in shares),
                width=12,
            ),
        ],
    )


def kv() -> Row:
    hits = rate("languagepipes_prefix_cache_hit_tokens_total", RING)
    asked = rate("languagepipes_prefix_cache_queried_tokens_total", RING)
    drafts = rate("languagepipes_speculation_drafts_total", RING)
    drafted = rate("languagepipes_speculation_draft_tokens_total", RING)
    accepted = rate("languagepipes_speculation_accepted_tokens_total", RING)
    return Row(
        "KV blocks, prefix cache, speculation",
        [
            lines(
                "KV blocks",
                "KV blocks in use, of those that the plan has; known blocks are those that a prompt may begin with. "
                "All in use while sequences wait: give the plan more memory, or add replicas.",
                "short",
                Query(total("languagepipes_kv_blocks_used", END_MODEL, "replica"), f"{OF_REPLICA}: in use"),
                Query(total("languagepipes_kv_blocks_total", END_MODEL, "replica"), f"{OF_REPLICA}: planned"),
                Query(total("languagepipes_prefix_cache_blocks", END_MODEL, "replica"), f"{OF_REPLICA}: known"),
            ),
            lines(
                "Pre-empted sequences",
                "Sequences whose KV blocks were taken away, and that are computed again. "
                "More than a few: the plan has too little KV for so many sequences at a time.",
                "short",
                Query(increase("languagepipes_preemptions_total", RING, "replica"), OF_REPLICA),
                bars=True,
            ),
            lines(
                "Prefix cache: prompt tokens found",
                "The share of prompt tokens that need not be computed, since their KV is there. "
                "Low where prompts begin alike: KV is short, or requests go to other replicas.",
                "percentunit",
                Query(ratio(hits, asked), "found"),
                top=1,
            ),
            lines(
                "Speculation: draft tokens accepted",
                "The share of draft tokens that were sampled. Low: this text does not repeat itself, and drafts cost "
                "computing time for little.",
                "percentunit",
                Query(ratio(accepted, drafted), "accepted"),
                width=12,
                top=1,
            ),
            lines(
                "Speculation: tokens a draft",
                "Tokens of a draft, and those of them that were sampled, on average. "
                "Each sampled one saves a step of its sequence.",
                "short",
                Query(ratio(drafted, drafts), "drafted"),
                Query(ratio(accepted, drafts), "accepted"),
                width=12,
            ),
        ],
    )


def ring() -> Row:
    step, hop = "languagepipes_step_seconds", "languagepipes_hop_seconds"
    sent, received = (f'{MEMBERS}, direction="{direction}"' for direction in ("sent", "received"))
    by_member = [
        rate(f"{step}_sum", MEMBERS, "stage"),
        mean(step, MEMBERS, "stage"),
        rate(f"{step}_count", MEMBERS, "stage"),
        rate("languagepipes_wire_bytes_total", sent, "stage"),
        ratio(
            total("languagepipes_kv_blocks_used", MEMBERS, "stage"),
            total("languagepipes_kv_blocks_total", MEMBERS, "stage"),
        ),
        total("process_resident_memory_bytes", MEMBERS, "stage"),
        f"{lowest(EXPIRY, MEMBERS, 'stage')} - time()",
    ]
    end_model = {"mappings": in_colours({"0": ("End Model", "text")})["mappings"], "custom.width": 120}
    return Row(
        "Ring of replica $replica",
        [
            table(
                "Members, in the order of the ring",
                "The End Model, then each stage, now. The ring is as fast as its slowest member: one that is busy all "
                "the time, or computes much longer than the others, wants fewer layers or a faster node.",
                # The End Model has no label stage; as the first of the ring it stands as 0.
                [f'label_replace({query}, "stage", "0", "stage", "")' for query in by_member],
                [
                    Column("stage", "Member", settings={"unit": "prefix:stage ", "custom.align": "left", **end_model}),
                    Column("A", "Busy", "percentunit", GAUGE),
                    Column("B", "Compute for a frame", "s"),
                    Column("C", "Frames", "cps"),
                    Column("D", "Sent", "binBps"),
                    Column("E", "KV blocks in use", "percentunit", GAUGE),
                    Column("F", "Memory", "bytes"),
                    Column("G", "Certificate ends in", "s", threshold_setting([(14 * DAY, "text")], "red")),
                ],
                sort="stage",
                number=True,
            ),
            lines(
                "Busy share of members",
                "The share of the time in which a member computes. One near 100 % while others are not holds up the "
                "ring (LanguagePipesStageSlow); all low while sequences run: hops take the time.",
                "percentunit",
                Query(rate(f"{step}_sum", MEMBERS, "role", "stage"), MEMBER),
                width=12,
                top=1,
            ),
            lines(
                "Compute for a frame, by member",
                "Mean computing time of a frame at each member, on top of each other. "
                "A member that takes more than its share of layers: see its node, other pods there, CPU limits.",
                "s",
                Query(mean(step, MEMBERS, "role", "stage"), MEMBER),
                width=12,
                stacked=True,
            ),
            lines(
                "Step",
                "A step is one micro-batch's way round the ring. Longer than the members' computing times together: "
                "frames wait for each other, or hops are slow.",
                "s",
                Query(quantile(0.5, "languagepipes_ring_step_seconds", END_MODEL), "50 %"),
                Query(quantile(0.95, "languagepipes_ring_step_seconds", END_MODEL), "95 %"),
            ),
            heat_map(
                "Hops",
                "The way over one link without computing: network, TLS, handling of a frame; measured where a frame "
                "is alone on the ring. Above 20 ms: are members in different zones, or are their CPUs busy?",
                "s",
                buckets(hop, END_MODEL),
            ),
            lines(
                "Hop, mean",
                "The mean of the hops beside; a token takes one hop for each member. "
                "Where it rises, see LanguagePipesHopSlow in the page on troubleshooting.",
                "s",
                Query(mean(hop, END_MODEL), "hop"),
            ),
            lines(
                "Bytes sent, by member",
                "Bytes of frames that each member sends to the next one. "
                "Near what the network carries: prompts are long, or a link is slow.",
                "binBps",
                Query(rate("languagepipes_wire_bytes_total", sent, "role", "stage"), MEMBER),
            ),
            lines(
                "Bytes received, by member",
                "Bytes of frames that each member receives. "
                "Less than its predecessor sends, for long: that link is lost or stalls.",
                "binBps",
                Query(rate("languagepipes_wire_bytes_total", received, "role", "stage"), MEMBER),
            ),
            lines(
                "Frames in flight",
                "Frames sent by the End Model that have not returned yet. "
                "1 for long while many sequences run: members compute one after the other.",
                "short",
                Query(total("languagepipes_frames_in_flight", END_MODEL), "in flight"),
            ),
        ],
        repeat="replica",
    )


def recovery() -> Row:
    counted = (("languagepipes_replays_total", "computed again"), ("languagepipes_requests_waited_total", "waited"))
    recomputed = rate("languagepipes_recomputed_tokens_total", RING)
    generated = rate("languagepipes_generated_tokens_total", RING)
    return Row(
        "Losses and recovery",
        [
            lines(
                "Ring epochs, by reason",
                "Epochs opened, by why the one before ended; start: the End Model started. "
                "lost, unreachable: a member ended; silence: a node or the network stalls; step_failed: see its log.",
                "short",
                Query(increase("languagepipes_ring_epochs_total", RING, "reason") + " > 0", "{{reason}}"),
                bars=True,
            ),
            lines(
                "Time without a ring",
                "The share of the time in which a replica had no ring, after it was joined once. "
                "Above 0: `kubectl describe lp NAME` names the member that is awaited.",
                "percentunit",
                Query(rate("languagepipes_ring_down_seconds_total", RING, "replica"), OF_REPLICA),
                top=1,
            ),
            lines(
                "Replays and pauses",
                "Sequences computed again after a lost epoch, and requests that waited for the ring. "
                "Clients see a pause; many: repair what ends the epochs.",
                "short",
                *(Query(increase(counter, RING), name) for counter, name in counted),
                bars=True,
            ),
            lines(
                "Recomputed tokens",
                "Tokens of prompts and answers that are computed again after a lost epoch, beside those generated. "
                "More than a small part: losses cost throughput, and long contexts most.",
                TOKENS_A_SECOND,
                Query(recomputed, "recomputed"),
                Query(generated, "generated"),
                width=12,
            ),
            lines(
                "Refused hellos, by reason",
                "Handshakes that a member refused. A few of `busy` while a ring is joined are usual; "
                "`tls`: certificates do not match, see the page on certificates.",
                "short",
                Query(increase("languagepipes_refused_hellos_total", RING, "reason") + " > 0", "{{reason}}"),
                width=12,
                bars=True,
            ),
        ],
    )


def members() -> Row:
    member = "{{role}} {{stage}} (replica {{replica}})"
    loaded, to_load = "languagepipes_load_bytes", "languagepipes_load_total_bytes"
    fetched, to_fetch = "languagepipes_store_fetched_bytes", "languagepipes_store_total_bytes"
    labels = ("role", "replica", "stage")
    return Row(
        "Members and weights",
        [
            lines(
                "Memory",
                "Resident memory of each member's process, the store's too. "
                "Near the container's limit: the kernel will end it (OOMKilled); see the plan's bytes in the status.",
                "bytes",
                Query(total("process_resident_memory_bytes", RING, *labels), member),
            ),
            lines(
                "CPU",
                "CPUs that each member's process uses. "
                "At the container's limit: it is throttled, and its computing times above rise.",
                "short",
                Query(rate("process_cpu_seconds_total", RING, *labels), member),
            ),
            lines(
                "Certificates end in",
                "Until the certificate that a member offers ends; it is renewed 30 days before. "
                "One that falls below: does an operator lead, and may it write Secrets?",
                "s",
                Query(f"{lowest(EXPIRY, RING, *labels)} - time()", member),
            ),
            lines(
                "Weights loaded",
                "The share of its weights that a member has loaded. "
                "It stands still below 100 %: see that member's log, and the store.",
                "percentunit",
                Query(ratio(total(loaded, MEMBERS, *labels), total(to_load, MEMBERS, *labels)), member),
                top=1,
            ),
            lines(
                "Weights fetched by the store",
                "The share of the model's files that the weights store has. "
                "It stands still below 100 %: the condition WeightsAvailable has the reason.",
                "percentunit",
                Query(ratio(total(fetched, PIPE), total(to_fetch, PIPE)), "fetched"),
                top=1,
            ),
            lines(
                "Weights served by the store, by member",
                "Bytes of weights that the store sends to members that start. "
                "Slow: all members start at once, or the store's volume is slow.",
                "binBps",
                Query(rate("languagepipes_store_served_bytes_total", PIPE, "member") + " > 0", "{{member}}"),
            ),
        ],
    )
