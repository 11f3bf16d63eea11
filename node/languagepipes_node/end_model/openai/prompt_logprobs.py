"""`prompt_logprobs`, vLLM's: of each token of a prompt, its log probability, its rank and the likeliest tokens.

A completion's choices hold those of their prompt, the whole answer of a chat those of its one prompt. They are computed
with a prompt's first answer, since all of its answers have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from languagepipes_node.end_model.openai.logprobs import LogprobWriter, listed
from languagepipes_node.end_model.requests import PromptScores

_TOKENS_A_PART = 32


class ShownPromptLogprobs:
    """prompts: the request's, as token ids. per_prompt: answers generated to each. in_choice: whether they are shown in
    each choice, or once beside them. alternatives: how many of the likeliest tokens."""

    def __init__(
        self,
        writer: LogprobWriter,
        prompts: Sequence[tuple[int, ...]],
        per_prompt: int,
        *,
        in_choice: bool,
        alternatives: int,
    ) -> None:
        self._writer, self._prompts, self._per_prompt = writer, prompts, per_prompt
        self._in_choice, self._alternatives = in_choice, alternatives
        self._written: list[list[bytes]] = [[b"null"] for _ in prompts]  # nothing comes before a prompt's first token

    def collect(self, index: int, scores: PromptScores) -> Iterator[int]:
        """Take them, of choice `index`, a few at a time; yields what each time cost, in microseconds or so."""
        place, choice = divmod(index, self._per_prompt)
        if choice:
            return
        prompt, written = self._prompts[place], self._written[place]
        for begin in range(0, len(scores.logprobs), _TOKENS_A_PART):
            part = scores.logprobs[begin : begin + _TOKENS_A_PART]
            for token, logprobs in zip(prompt[scores.first + begin :], part, strict=False):
                written.append(self._writer.prompt_token(token, logprobs, alternatives=self._alternatives))
            yield len(part) * (2 + self._alternatives)

    def of_choice(self, index: int) -> Iterator[bytes]:
        """Further fields of a whole choice, part by part."""
        if self._in_choice:
            yield from self._field(index // self._per_prompt)

    def of_whole(self) -> Iterator[bytes]:
        """Further fields of a whole answer, part by part."""
        if not self._in_choice:
            yield from self._field(0)

    def _field(self, place: int) -> Iterator[bytes]:
        yield b',"prompt_logprobs":['
        yield from listed(self._written[place])
        yield b"]"
