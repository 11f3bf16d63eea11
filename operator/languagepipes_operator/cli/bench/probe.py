"""Learns of a server, before anything is measured: its model, the fields that it takes, and how it counts prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import aiohttp

from languagepipes_operator.cli.bench.client import BenchError, Client, RefusedRequest, RequestForm
from languagepipes_operator.cli.bench.options import BenchOptions
from languagepipes_operator.cli.bench.prompts import Job, Scale, sample_words
from languagepipes_operator.cli.bench.records import RequestRecord

_FEW_WORDS, _MOST_WORDS = 16, 1024
_OUTPUT_TOKENS = 16
# What a server may say of a field that it does not know: OpenAI's and vLLM's 400, FastAPI's 422.
_WRONG_FIELD = (400, 422)


@dataclass(frozen=True)
class Server:
    """What was learned. notes: what of it a reader of the figures must know. records: of the requests that were
    answered.
    """

    form: RequestForm
    scale: Scale
    reports_usage: bool
    notes: tuple[str, ...]
    records: tuple[RequestRecord, ...]


async def probe(client: Client, options: BenchOptions, seed: int) -> Server:
    """Raises BenchError."""
    form = RequestForm(
        options.route,
        options.model or await _only_model(client),
        length_field="ignore_eos" if options.ignore_eos else None,
        more={
            **({} if options.temperature is None else {"temperature": options.temperature}),
            **options.extra_body,
        },
    )
    source = random.Random(f"{seed}/probe")  # noqa: S311 (no secret)
    few = Job(-1, sample_words(source, _FEW_WORDS), _OUTPUT_TOKENS)
    form, first = await _accepted_form(client, form, few)
    notes = tuple(f"{note}." for note in _form_notes(form, options))
    if first.prompt_tokens is None:
        return Server(form, Scale(), False, notes, (first,))
    # As many as a prompt of the wanted length has at most: what was asked for must fit, but no more.
    words = round(options.prompt_tokens.typical * _FEW_WORDS / max(first.prompt_tokens, 1))
    words = min(max(words, 2 * _FEW_WORDS), _MOST_WORDS)
    many = await client.attempt(Job(-2, sample_words(source, words), _OUTPUT_TOKENS), form)
    if isinstance(many, RefusedRequest):
        raise BenchError(f"a prompt of {words} words is refused: {_sentence(many)}")
    if many.prompt_tokens is None:
        return Server(form, Scale(), False, notes, (first, many))
    scale = Scale.through((_FEW_WORDS, first.prompt_tokens), (words, many.prompt_tokens))
    return Server(form, scale, True, notes, (first, many))


async def _only_model(client: Client) -> str:
    try:
        models = await client.models()
    except aiohttp.ClientConnectorError as error:
        raise BenchError(f"nothing answers at {client.url}: {error.strerror or error}") from error
    except (aiohttp.ClientError, OSError) as error:
        raise BenchError(f"{client.url}models: {str(error) or type(error).__name__}") from error
    if isinstance(models, RefusedRequest):
        advice = "" if models.status in (401, 403) else "; name the model with --model"
        raise BenchError(f"{client.url}models: {_sentence(models)}{advice}")
    if len(models) != 1:
        listed = ", ".join(models) or "none"
        raise BenchError(f"{client.url}models lists {len(models)} models ({listed}): name one with --model")
    return models[0]


async def _accepted_form(client: Client, form: RequestForm, job: Job) -> tuple[RequestForm, RequestRecord]:
    """The first form that is answered, from all that is wanted to what every server takes."""
    told: RefusedRequest | None = None
    for tried in _forms(form):
        answer = await client.attempt(job, tried)
        if isinstance(answer, RequestRecord):
            return tried, answer
        told = told or answer
        if answer.status not in _WRONG_FIELD:
            break
    assert told is not None  # noqa: S101 (there is at least one form)
    raise BenchError(f"the server refuses: {_sentence(told)}")


def _forms(form: RequestForm) -> Iterator[RequestForm]:
    lengths = ("ignore_eos", "min_tokens", None) if form.length_field else (None,)
    for usage in (True, False):
        for length_field in lengths:
            for limit_field in ("max_tokens", "max_completion_tokens") if form.route == "chat" else ("max_tokens",):
                yield replace(form, usage=usage, length_field=length_field, limit_field=limit_field)


def _form_notes(form: RequestForm, options: BenchOptions) -> Iterator[str]:
    if options.ignore_eos and form.length_field == "min_tokens":
        yield "The server takes no ignore_eos: min_tokens makes answers as long as asked"
    if options.ignore_eos and form.length_field is None:
        yield "The server takes neither ignore_eos nor min_tokens: answers end where the model ends them"
    if not form.usage:
        yield "The server refuses stream_options.include_usage"


def _sentence(refusal: RefusedRequest) -> str:
    hint = " (give the key with --api-key or OPENAI_API_KEY)" if refusal.status in (401, 403) else ""
    return f"{refusal.status}: {refusal.message}{hint}"
