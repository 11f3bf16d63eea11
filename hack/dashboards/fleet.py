"""The dashboard of all pipes, the alerts of the chart that fire, and the operator."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard

from dashboards import pipe
from dashboards.panels import (
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
from dashboards.queries import buckets, highest, increase, lowest, quantile, rate, total

UID = "languagepipes-fleet"
PIPES = 'namespace=~"$namespace"'
OPERATOR = 'namespace=~"$operator"'
OF_PIPE = ("namespace", "pipe")
NAME = "{{namespace}}/{{pipe}}"
POD = "{{namespace}}/{{pod}}"
# The alert on the operator names the operator's namespace, all others a pipe's.
ALERTS = 'ALERTS{alertname=~"LanguagePipes.*", alertstate="firing", namespace=~"$namespace|$operator"}'
YES_NO = {"1": ("True", "green"), "0": ("False", "red")}
CONDITION = "languagepipes_operator_pipe_condition"
LEADER = "languagepipes_operator_leader"


def build() -> dashboard.Dashboard:
    return page(
        uid=UID,
        title="Language Pipes / Fleet",
        description="All pipes, the alerts of the chart that fire, and the operator.",
        variables=[
            labels_variable(
                "namespace",
                "Namespace",
                "The namespaces of the pipes.",
                CONDITION,
                "namespace",
                several=True,
            ),
            labels_variable(
                "operator",
                "Operator",
                "The namespaces that operators run in; a cluster may have several.",
                LEADER,
                "namespace",
                several=True,
            ),
        ],
        rows=[overview(), alerts(), pipes(), time(), operator(), api_server()],
    )


def condition(name: str) -> str:
    """1 or 0 for each pipe: one operator reports it, and only during a change of the leader two."""
    return highest(CONDITION, f'{PIPES}, condition="{name}"', *OF_PIPE)


def first_certificate() -> str:
    return lowest("languagepipes_operator_certificate_expiry_seconds", PIPES, *OF_PIPE)


def overview() -> Row:
    ready = condition("Ready")
    return Row(
        "Now",
        [
            stat(
                "Pipes",
                "Pipes of the chosen namespaces. None although there are some: no operator leads, or none is scraped.",
                "none",
                Query(f"count({ready})"),
            ),
            stat(
                "Pipes not ready",
                "Pipes whose condition Ready is False. The table below shows which; "
                "`kubectl describe lp NAME` has the reason and the remedy.",
                "none",
                Query(f"sum(1 - {ready})"),
                steps=[(1, "orange")],
            ),
            stat(
                "Alerts firing",
                "Alerts of the chart's PrometheusRule that fire. The table below shows them; "
                "always 0 where the rule is not enabled.",
                "none",
                Query(f"count({ALERTS}) or vector(0)"),
                steps=[(1, "red")],
            ),
            stat(
                "Operator leads",
                "Whether an operator pod holds the Lease. No: nothing is repaired, scaled or renewed, and pipes "
                "that run go on; see the operator's log.",
                "none",
                Query(highest(LEADER, OPERATOR)),
                mappings={"1": ("Yes", "green"), "0": ("No", "red")},
            ),
            stat(
                "Generated tokens",
                "Tokens sampled a second by all chosen pipes. None while sequences run: see which pipe below.",
                TOKENS_A_SECOND,
                Query(rate("languagepipes_generated_tokens_total", PIPES)),
            ),
            stat(
                "Sequences running",
                "Sequences that hold KV blocks, of all chosen pipes. It shows how much is asked for now.",
                "none",
                Query(total("languagepipes_running_sequences", PIPES)),
            ),
            stat(
                "Sequences waiting",
                "Admitted sequences that wait for KV blocks or a slot. Above 0 for long: the table shows which pipe "
                "needs replicas.",
                "none",
                Query(total("languagepipes_waiting_sequences", PIPES)),
                steps=[(1, "orange")],
            ),
            stat(
                "Rings down",
                "Rings that were up, and are down by their End Model's own word. "
                "Above 0 for long: that pipe's dashboard shows why.",
                "none",
                Query(highest("languagepipes_operator_rings_down", OPERATOR)),
                steps=[(1, "red")],
            ),
        ],
    )


def alerts() -> Row:
    labels = ("alertname", "severity", *OF_PIPE, "replica", "stage")
    colours = in_colours({"critical": ("critical", "red"), "warning": ("warning", "orange")})
    titles = ("Alert", "Severity", "Namespace", "Pipe", "Replica", "Stage")
    return Row(
        "Alerts",
        [
            table(
                "Alerts that fire",
                "Alerts of the chart's PrometheusRule that fire now. "
                "The page on troubleshooting has a heading for each, with what to look at and what to do.",
                [f"max by ({', '.join(labels)}) ({ALERTS})"],
                [
                    Column(label, title, settings=colours if label == "severity" else {})
                    for label, title in zip(labels, titles, strict=True)
                ],
                sort="alertname",
                width=14,
            ),
            lines(
                "Alerts in time",
                "How many alerts of each kind fired when. "
                "Those that come and go again: their thresholds may be too close to what is usual here.",
                "short",
                Query(f"count by (alertname) ({ALERTS})", "{{alertname}}"),
                width=10,
                bars=True,
            ),
        ],
    )


def pipes() -> Row:
    link = {
        "title": "Open the pipe's dashboard",
        "url": f"/d/{pipe.UID}?var-datasource=${{datasource}}&var-namespace=${{__data.fields.Namespace}}"
        "&var-pipe=${__value.raw}&${__url_time_range}",
    }
    queries = [
        condition("Ready"),
        condition("EndpointReady"),
        total("languagepipes_ring_ready", PIPES, *OF_PIPE),
        rate("languagepipes_generated_tokens_total", PIPES, *OF_PIPE),
        total("languagepipes_running_sequences", PIPES, *OF_PIPE),
        total("languagepipes_waiting_sequences", PIPES, *OF_PIPE),
        quantile(0.95, pipe.FIRST, PIPES, *OF_PIPE),
        first_certificate(),
    ]
    return Row(
        "Pipes",
        [
            table(
                "All pipes",
                "Each pipe now; its name opens its dashboard. EndpointReady False: clients get no answers. "
                "Ready False alone: something is short, is changed or recovers, and clients are still answered.",
                queries,
                [
                    Column("namespace", "Namespace"),
                    Column("pipe", "Pipe", settings={"links": [link]}),
                    Column("A", "Ready", settings=in_colours(YES_NO)),
                    Column("B", "EndpointReady", settings=in_colours(YES_NO)),
                    Column("C", "Rings up"),
                    Column("D", "Generated", TOKENS_A_SECOND, {"decimals": 1}),
                    Column("E", "Running"),
                    Column("F", "Waiting", settings=threshold_setting([(1, "orange")], "text")),
                    Column("G", "First token, 95 %", "s"),
                    Column("H", "Certificate ends in", "s", threshold_setting([(14 * pipe.DAY, "text")], "red")),
                ],
                sort="pipe",
                height=10,
            )
        ],
    )


def time() -> Row:
    return Row(
        "Pipes in time",
        [
            lines(
                "Generated tokens, by pipe",
                "Tokens sampled a second. A pipe that falls while others do not: see its dashboard.",
                TOKENS_A_SECOND,
                Query(rate("languagepipes_generated_tokens_total", PIPES, *OF_PIPE), NAME),
            ),
            lines(
                "First token within, 95 % of requests, by pipe",
                "Within this time 95 of 100 requests have their first token. "
                "A pipe above its objective has too few replicas, or long prompts.",
                "s",
                Query(quantile(0.95, pipe.FIRST, PIPES, *OF_PIPE), NAME),
            ),
            lines(
                "Sequences waiting, by pipe",
                "Admitted sequences that wait for KV blocks or a slot. A queue that stays asks for more replicas.",
                "short",
                Query(total("languagepipes_waiting_sequences", PIPES, *OF_PIPE), NAME),
            ),
            lines(
                "Requests by outcome",
                "Requests that ended, of all chosen pipes. Many that are not ok: the pipe's dashboard shows which pipe "
                "they are of; queue_full asks for replicas, ring_down for a look at its members.",
                "reqps",
                Query(rate("languagepipes_requests_total", PIPES, "outcome"), "{{outcome}}"),
                stacked=True,
            ),
            lines(
                "Ring epochs after a loss, by pipe",
                "Rings that were joined again after they were lost; each time the replica's requests pause. "
                "Again and again: LanguagePipesRingUnstable in the page on troubleshooting.",
                "short",
                Query(
                    increase("languagepipes_ring_epochs_total", f'{PIPES}, reason!="start"', *OF_PIPE) + " > 0", NAME
                ),
                bars=True,
            ),
            lines(
                "Pipes by phase",
                "Pipes in each phase, as the operators count them. "
                "Many in Fetching or Starting for long: see their conditions.",
                "short",
                Query(
                    f"sum by (phase) (max by (namespace, job, phase) (languagepipes_operator_pipes{{{OPERATOR}}})) > 0",
                    "{{phase}}",
                ),
                stacked=True,
            ),
        ],
    )


def operator() -> Row:
    own = f"and on (job, instance) {LEADER}{{{OPERATOR}}}"
    return Row(
        "Operator",
        [
            lines(
                "Leader",
                "1 for the pod that holds the Lease, 0 for those that stand by. "
                "No 1: nobody leads; changes again and again: see the pods' restarts and the API server.",
                "none",
                Query(f"{LEADER}{{{OPERATOR}}}", POD),
                top=1,
            ),
            lines(
                "Reconciles by outcome",
                "Reconciles a second: done, retry (an error; tried again with back-off) or gone. "
                "retry that does not end: the operator's log has the error.",
                "ops",
                Query(rate("languagepipes_operator_reconciles_total", OPERATOR, "outcome"), "{{outcome}}"),
                stacked=True,
            ),
            heat_map(
                "Duration of reconciles",
                "How long reconciles take; a stronger colour is more of them. "
                "Seconds: the API server is slow, or the operator has too little CPU.",
                "s",
                buckets("languagepipes_operator_reconcile_seconds", OPERATOR),
            ),
            lines(
                "Pipes that wait to be reconciled",
                "The depth of the queue. Above 0 for more than seconds: reconciles are slow, or are repeated.",
                "short",
                Query(total("languagepipes_operator_queue_depth", OPERATOR, "namespace", "pod"), POD),
            ),
            lines(
                "Memory",
                "Resident memory of operator pods. Near the container's limit (512Mi unless set): raise `resources`.",
                "bytes",
                Query(f"process_resident_memory_bytes {own}", POD),
            ),
            lines(
                "CPU",
                "CPUs that operator pods use. High without changes of pipes: something is reconciled again and again.",
                "short",
                Query(f"rate(process_cpu_seconds_total[$__rate_interval]) {own}", POD),
            ),
        ],
    )


def api_server() -> Row:
    return Row(
        "What the operator asks",
        [
            lines(
                "API calls, by verb",
                "Requests to the API server a second, retries included. "
                "Many writes while no pipe changes: somebody else changes what the operator applies.",
                "reqps",
                Query(rate("languagepipes_operator_api_calls_total", OPERATOR, "verb"), "{{verb}}"),
                stacked=True,
            ),
            lines(
                "API calls that failed, by status",
                "Answers of 400 and above; 0 is no answer. 403: a permission is missing; 409 and 404 are usual now and "
                "then; 429, 5xx and 0: the API server is short of something.",
                "reqps",
                Query(
                    rate("languagepipes_operator_api_calls_total", f'{OPERATOR}, code=~"0|[45].."', "kind", "code")
                    + " > 0",
                    "{{code}} {{kind}}",
                ),
            ),
            lines(
                "Watches begun anew",
                "Watches of the API server by kind and reason. ended is usual; many of silent, expired or failed: "
                "the connection or the API server has trouble.",
                "short",
                Query(
                    increase("languagepipes_operator_watch_restarts_total", OPERATOR, "kind", "reason") + " > 0",
                    "{{kind}} {{reason}}",
                ),
                bars=True,
            ),
            lines(
                "Questions that were not answered",
                "Questions to weights stores and End Models that got no answer. "
                "A few while members start are usual; otherwise a NetworkPolicy keeps the operator out.",
                "short",
                *(
                    Query(
                        increase(f"languagepipes_operator_{kind}_questions_total", f'{OPERATOR}, outcome="silent"'),
                        name,
                    )
                    for kind, name in (("store", "weights stores"), ("ring", "End Models"))
                ),
                bars=True,
            ),
            lines(
                "Lost nodes and rings down",
                "Nodes with members that answered before and do not now, and rings that were up and are down. "
                "Above 0 for long: see the nodes, and the pipes' dashboards.",
                "short",
                Query(highest("languagepipes_operator_lost_nodes", OPERATOR), "lost nodes"),
                Query(highest("languagepipes_operator_rings_down", OPERATOR), "rings down"),
            ),
            lines(
                "Certificates end in, by pipe",
                "Until the pipe's first certificate ends, by the operator's Secrets; it is renewed 30 days before. "
                "One that falls below: the operator may not write that Secret, see its log.",
                "s",
                Query(first_certificate(), NAME),
            ),
        ],
    )
