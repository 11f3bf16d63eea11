"""From a prompt's text to token ids that the model has, in a worker thread. It knows neither routes nor the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from languagepipes_node.end_model.openai.errors import ContextLengthExceeded, InvalidRequest
from languagepipes_node.end_model.text import TextCodec


@dataclass(frozen=True)
class PromptReader:
    """Tokenises prompts, and refuses what the embedding has no row for and what is too long by its bytes alone.

    embedding_rows: of the model's embedding, and of its head. A tokenizer may know more tokens than that (tokens were
    added and the model was not resized), or fewer (rows were added to make their number round).
    """

    text: TextCodec
    embedding_rows: int
    max_context_length: int

    @property
    def known_ids(self) -> int:
        """One more than the largest token id that both the tokenizer and the model know."""
        return min(self.text.vocabulary_size, self.embedding_rows)

    def encode(
        self, text: str, *, param: str, add_special_tokens: bool = True, keep_last: int | None = None
    ) -> tuple[int, ...]:
        """`text` as token ids. Raises InvalidRequest if the model lacks one of its tokens, and ContextLengthExceeded
        where no tokens of this tokenizer could spell so long a text within the context: then it is not tokenised.
        keep_last: leave out all but so many of its last tokens; a text of any length is tokenised then.
        """
        if keep_last is None:
            self.check_length(text, param=param)
        tokens = self.text.encode(text, add_special_tokens=add_special_tokens)
        if keep_last is not None:
            tokens = tokens[-keep_last:]
        if tokens and max(tokens) >= self.embedding_rows:
            place = next(place for place, token in enumerate(tokens) if token >= self.embedding_rows)
            raise InvalidRequest(
                f"Token {place + 1} of the prompt has id {tokens[place]}, which the model does not know: its embedding"
                f" has ids 0 to {self.embedding_rows - 1}, its tokenizer has more. Leave out the text of that token.",
                param=param,
            )
        return tokens

    def check_length(self, text: str, *, param: str) -> None:
        """Raises ContextLengthExceeded where no tokens of this tokenizer could spell so long a text in the context."""
        if (least := self.text.least_tokens(text)) >= self.max_context_length:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_context_length} tokens, and the prompt has at least"
                f" {least}, which leaves no room for an answer. Please shorten the prompt.",
                param=param,
            )

    def check(self, tokens: Sequence[int], *, param: str) -> None:
        """Raises InvalidRequest for token ids that the tokenizer or the model does not have."""
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.known_ids):
            wrong = next(token for token in tokens if not 0 <= token < self.known_ids)
            raise InvalidRequest(f"'{param}' holds token id {wrong}, expected 0 to {self.known_ids - 1}.", param=param)
