"""What a request says of sampling, stopping and showing, as the engine and the answers want it.

A parameter that the request leaves out has the model's own default (`SamplingDefaults`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from languagepipes_node.end_model.openai.answers import Answer, AnswerRules, Echo
from languagepipes_node.end_model.openai.errors import InvalidRequest
from languagepipes_node.end_model.openai.schemas import ChatCompletionRequest, CompletionRequest
from languagepipes_node.end_model.requests import SamplingParameters
from languagepipes_node.end_model.text import SamplingDefaults, TextCodec

_FIRST_SURROGATE = 0xD800  # of 2,048, and stop strings have no room for so many special tokens


def sampling_parameters(
    request: ChatCompletionRequest | CompletionRequest,
    defaults: SamplingDefaults,
    logit_bias: tuple[tuple[int, float], ...],
) -> SamplingParameters:
    """For the engine."""

    def chosen(value: float | None, default: float) -> float:
        return float(default if value is None else value)

    return SamplingParameters(
        temperature=chosen(request.temperature, defaults.temperature),
        top_p=chosen(request.top_p, defaults.top_p),
        top_k=max(0, defaults.top_k if request.top_k is None else request.top_k),
        min_p=chosen(request.min_p, defaults.min_p),
        seed=request.seed,
        presence_penalty=float(request.presence_penalty),
        frequency_penalty=float(request.frequency_penalty),
        repetition_penalty=chosen(request.repetition_penalty, defaults.repetition_penalty),
        min_tokens=request.min_tokens,
        logit_bias=logit_bias,
    )


@dataclass(frozen=True)
class Stopping:
    """Where an answer ends. token_ids: at these tokens. special: those of them that are stop strings of the request.
    strings: at these texts. marks: characters that stand for special tokens in them (`_marked`).
    """

    token_ids: frozenset[int]
    special: dict[int, str]
    strings: tuple[str, ...]
    marks: dict[int, str]

    @classmethod
    def of(cls, request: ChatCompletionRequest | CompletionRequest, text: TextCodec, known_ids: int) -> Stopping:
        """Raises InvalidRequest for a stop token that there is not."""
        for token in request.stop_token_ids:
            if token >= known_ids:
                raise InvalidRequest(
                    f"'stop_token_ids' holds token id {token}, expected 0 to {known_ids - 1}.", param="stop_token_ids"
                )
        # Special tokens are no text, so no text would ever hold these.
        special = {number: stop for stop in request.stop if (number := text.special_token(stop)) is not None}
        own: frozenset[int] = frozenset() if request.ignore_eos else text.stop_token_ids
        token_ids = own | special.keys() | frozenset(request.stop_token_ids)
        if not request.skip_special_tokens:
            return cls(token_ids, special, request.stop, {})
        marks: dict[int, str] = {}
        marked = [_marked(stop, text, marks) for stop in request.stop if stop not in special.values()]
        return cls(token_ids, special, tuple(dict.fromkeys((*request.stop, *marked))), marks)


def _marked(stop: str, text: TextCodec, marks: dict[int, str]) -> str:
    """`stop` with a lone surrogate, which no text holds, for each special token that is spelled out in it beside other
    text. marks: the surrogate of each such token, added to."""
    for token, spelling in text.special_tokens_in(stop):
        mark = marks.setdefault(token, chr(_FIRST_SURROGATE + len(marks)))
        stop = stop.replace(spelling, mark)
    return stop


def generated_choices(request: ChatCompletionRequest | CompletionRequest) -> tuple[int, str]:
    """How many answers to each prompt are generated, and the parameter that says so. Raises InvalidRequest."""
    best_of = request.best_of if isinstance(request, CompletionRequest) else None
    if best_of is None:
        return request.n, "n"
    if best_of < request.n:
        raise InvalidRequest(
            f"'best_of' is {best_of} and 'n' is {request.n}: 'best_of' must be at least 'n'.", param="best_of"
        )
    if best_of > request.n and request.stream:
        raise InvalidRequest(
            f"'best_of' is {best_of} and 'n' is {request.n}: an answer can only be streamed where they are the same.",
            param="best_of",
        )
    return best_of, "best_of"


def shown_answers(kept: int | None, answers: Sequence[Answer], per_prompt: int) -> list[int]:
    """Which answers are shown: all, or of each prompt's `per_prompt` the `kept` with the highest log probability a
    token."""
    if kept is None:
        return list(range(len(answers)))
    shown: list[int] = []
    for first in range(0, len(answers), per_prompt):
        own = range(first, first + per_prompt)
        shown += sorted(own, key=lambda index: -answers[index].mean_logprob)[:kept]
    return shown


def check_min_tokens(request: ChatCompletionRequest | CompletionRequest, limit: int) -> None:
    """limit: tokens that the answer may have. Raises InvalidRequest."""
    if request.min_tokens > limit:
        raise InvalidRequest(
            f"'min_tokens' is {request.min_tokens}, and the answer has at most {limit} tokens: lower it.",
            param="min_tokens",
        )


def answer_rules(
    request: ChatCompletionRequest | CompletionRequest, stopping: Stopping, echoes: Sequence[str] | None
) -> list[AnswerRules]:
    """How each prompt's answers become text. echoes: the prompts' texts, if they are shown; else one rule for all."""

    def rules(echo: Echo | None) -> AnswerRules:
        return AnswerRules(
            include_stop=request.include_stop_str_in_output,
            skip_special_tokens=request.skip_special_tokens,
            min_tokens=request.min_tokens,
            special_stops=stopping.special,
            marks=stopping.marks,
            show_scores=shows_scores(request),
            show_ids=request.return_token_ids,
            echo=echo,
            silent=request.max_tokens == 0,
        )

    if echoes is None:
        return [rules(None)]
    return [rules(Echo(text, scored=shows_scores(request), alternatives=int(request.logprobs or 0))) for text in echoes]


def shows_scores(request: ChatCompletionRequest | CompletionRequest) -> bool:
    """Whether the answer shows log probabilities."""
    return request.logprobs is not None and request.logprobs is not False


def prompt_limit(
    request: ChatCompletionRequest | CompletionRequest, *, context: int, answer_tokens: int | None
) -> int | None:
    """How many of a prompt's last tokens are kept; None: all, or it is refused. answer_tokens: as many as the answer
    may have; None: what the context leaves. Raises InvalidRequest.
    """
    asked = request.truncate_prompt_tokens
    if asked is None:
        return None
    if asked == -1:
        return max(1, context - max(1, answer_tokens or 1))
    if asked == 0 or asked > context:
        raise InvalidRequest(
            f"'truncate_prompt_tokens' is {asked}, expected -1 (as many as fit) or 1 to {context}.",
            param="truncate_prompt_tokens",
        )
    return asked
