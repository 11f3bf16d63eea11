"""From a validated request and its tokenised prompts to the sequences that the engine is asked for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastapi import Request

from languagepipes_node.end_model.openai.admission import Asker
from languagepipes_node.end_model.openai.answers import AnswerRules
from languagepipes_node.end_model.openai.bridge import (
    Draining,
    EngineGone,
    Reservation,
    SequenceRequest,
    TooManySequences,
)
from languagepipes_node.end_model.openai.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    QueueFull,
    RingDown,
    ShuttingDown,
    UnsupportedParameter,
)
from languagepipes_node.end_model.openai.sampling_request import (
    Stopping,
    answer_rules,
    check_min_tokens,
    generated_choices,
    sampling_parameters,
)
from languagepipes_node.end_model.openai.schemas import MAX_CHOICES, ChatCompletionRequest, CompletionRequest
from languagepipes_node.end_model.openai.service import Service
from languagepipes_node.end_model.openai.structured_parameters import AskedConstraint
from languagepipes_node.end_model.requests import SamplingParameters
from languagepipes_node.end_model.structured import ConstraintError, Grammar
from languagepipes_node.end_model.tools.parser import AnswerReader

# They are kept until the answer is sent, some 120 bytes each.
_MOST_PROMPT_LOGPROBS = 786_432


@dataclass(frozen=True)
class Generation:
    """All that is to be generated for one request. sequences: choice i is of prompt i // per_prompt. seats: theirs.
    rules: of each sequence's text. kept: how many of a prompt's answers are shown, the likeliest; None: all.
    new_reader: makes what tells thinking, content and calls apart in a choice, if they are to be; special: special
    tokens that it needs the text of.
    """

    seats: Reservation
    sequences: tuple[SequenceRequest, ...]
    prompt_tokens: int
    stops: tuple[str, ...]
    stream: bool
    rules: tuple[AnswerRules, ...] = ()
    per_prompt: int = 1
    kept: int | None = None
    new_reader: Callable[[], AnswerReader] | None = None
    special: frozenset[int] = frozenset()


def reserve_seats(
    service: Service, asker: Asker, request: ChatCompletionRequest | CompletionRequest, *, prompts: int
) -> Reservation:
    """Admit a request before anything is done for it that takes long. Raises InvalidRequest, QueueFull, RingDown,
    ShuttingDown."""
    choices, param = generated_choices(request)
    if prompts * choices > MAX_CHOICES:
        raise InvalidRequest(
            f"'{param}' asks for {choices} answers to each of {prompts} prompts, at most {MAX_CHOICES} in all.",
            param=param,
        )
    try:
        with told_to_the_client():
            return asker.reserve(service.bridge, prompts * choices)
    except TooManySequences as error:
        if error.asked > error.limit:
            raise InvalidRequest(
                f"The request asks for {error.asked} answers at once, this server generates at most {error.limit}.",
                param=param,
            ) from None
        raise QueueFull(f"The server is at its limit of {error.limit} answers at once: try again later.") from None


async def compile_grammar(service: Service, request: Request, asked: AskedConstraint | None) -> Grammar | None:
    """What the answer must match, compiled beside the event loop unless it was already; None for any text. Raises
    InvalidRequest and ClientGone."""
    if asked is None or asked.constraint is None:
        return None
    try:
        known = service.grammars.known(asked.constraint)
        if known is not None:
            return known
        work = functools.partial(service.grammars.compile, asked.constraint)
        return await service.grammar_workers.run_for(request, work)
    except ConstraintError as error:
        raise asked.refusal(error) from error


def plan_generation(
    service: Service,
    asker: Asker,
    seats: Reservation,
    request: ChatCompletionRequest | CompletionRequest,
    prompts: Sequence[tuple[int, ...]],
    *,
    prompt_param: str,
    max_tokens: tuple[str, int] | None,
    default_max_tokens: int | None,
    logprobs: int | None,
    echoes: Sequence[str] | None = None,
    grammar: Grammar | None = None,
) -> Generation:
    """Turn a request and its tokenised prompts into sequences. seats: for as many. max_tokens: the parameter's name and
    value, if given; default_max_tokens None: as many as the context has room for. grammar: what each answer must match.
    echoes: the prompts' texts, if they are shown before the answers. Raises InvalidRequest.
    """
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    known_ids = service.prompts.known_ids
    sampling = sampling_parameters(request, service.defaults, _logit_bias(known_ids, request.logit_bias))
    stopping = Stopping.of(request, service.text, known_ids)
    rules = answer_rules(request, stopping, echoes)
    choices, _ = generated_choices(request)
    ranked = choices > request.n
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("'prompt_logprobs' is not available when 'stream' is true.", param="prompt_logprobs")
    if request.priority and not service.takes_priorities:
        raise UnsupportedParameter(
            "'priority' is not taken by this server, where clients take turns: leave it out, send 0, or set "
            "spec.server.schedulingPolicy to priority.",
            param="priority",
        )
    _check_prompt_logprobs(request.prompt_logprobs, sum(map(len, prompts)))
    sequences = []
    for prompt in prompts:
        if not prompt:
            raise InvalidRequest("The prompt holds no tokens, at least one is needed.", param=prompt_param)
        room = _room(service, prompt, prompt_param, max_tokens)
        default = min(room, default_max_tokens or service.defaults.max_tokens or room)
        limit = max_tokens[1] if max_tokens is not None else default
        check_min_tokens(request, limit)
        sequences += [
            SequenceRequest(
                prompt,
                max(1, limit),
                _seeded(sampling, choice),
                stopping.token_ids,
                0 if ranked and logprobs is None else logprobs,
                asker.client,
                grammar=grammar,
                priority=request.priority,
                prompt_logprobs=_most(
                    logprobs if echoes is not None else None,
                    request.prompt_logprobs if choice == 0 else None,  # the same for all answers to a prompt
                ),
                cache_domain=asker.cache_domain(request.cache_salt),
            )
            for choice in range(choices)
        ]
    return Generation(
        seats,
        tuple(sequences),
        sum(map(len, prompts)),
        stopping.strings,
        request.stream,
        rules=tuple(rule for rule in rules for _ in range(len(sequences) // len(rules))),
        per_prompt=choices,
        kept=request.n if ranked else None,
    )


@contextlib.contextmanager
def told_to_the_client() -> Iterator[None]:
    """A bridge that takes no requests any more, as an ApiError."""
    try:
        yield
    except EngineGone as error:
        raise RingDown(f"The model is not being served any more: {error}") from None
    except Draining as error:
        raise ShuttingDown(str(error)) from None


def _room(service: Service, prompt: tuple[int, ...], prompt_param: str, max_tokens: tuple[str, int] | None) -> int:
    """How many tokens an answer may have. Raises ContextLengthExceeded naming the numbers."""
    limit = service.max_context_length
    room = limit - len(prompt)
    if room < 1:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens, and the prompt has {len(prompt)}, which leaves "
            "no room for an answer. Please shorten the prompt.",
            param=prompt_param,
        )
    if max_tokens is not None and max_tokens[1] > room:
        name, asked = max_tokens
        raise ContextLengthExceeded(
            f"This model's maximum context length is {limit} tokens. However, you requested {len(prompt) + asked} "
            f"({len(prompt)} in the prompt and {asked} by '{name}'). Please shorten the prompt or lower '{name}'.",
            param=name,
        )
    return room


def _most(*counts: int | None) -> int | None:
    return max((count for count in counts if count is not None), default=None)


def _check_prompt_logprobs(alternatives: int | None, prompt_tokens: int) -> None:
    """Raises InvalidRequest for more numbers than are kept until an answer is sent."""
    numbers = 0 if alternatives is None else prompt_tokens * (1 + alternatives)
    if numbers > _MOST_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"'prompt_logprobs' asks for {numbers} log probabilities ({prompt_tokens} prompt tokens with "
            f"{alternatives} alternatives each), at most {_MOST_PROMPT_LOGPROBS} in one request: ask for fewer "
            "alternatives, or send shorter prompts.",
            param="prompt_logprobs",
        )


def _seeded(sampling: SamplingParameters, choice: int) -> SamplingParameters:
    """Each of a prompt's choices draws from a seed of its own; the first from the one that was asked for."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % 2**63)


def _logit_bias(known_ids: int, bias: dict[str, float]) -> tuple[tuple[int, float], ...]:
    pairs = []
    for token, value in bias.items():
        if not (token.isascii() and token.isdigit()) or len(token) > 9 or int(token) >= known_ids:
            raise InvalidRequest(
                f"'logit_bias' has a key that is no token id, expected 0 to {known_ids - 1}.",
                param="logit_bias",
            )
        pairs.append((int(token), float(value)))
    return tuple(pairs)
