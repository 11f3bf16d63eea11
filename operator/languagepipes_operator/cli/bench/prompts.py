"""Prompts of random words: of a wanted number of tokens, and each unlike every other, so that no prefix cache has it.

No tokenizer is at hand, so how many tokens a word has and how many the chat template adds is learned from the
server's own usage (`Scale`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from languagepipes_operator.cli.bench.lengths import Lengths

# Short and frequent: with the space before it, each is one token of nearly every vocabulary.
_TEXT = """
able about above act add after again age ago air all also always among an and animal answer any appear apple
area arm art as ask at away baby back bad bag ball bank base be bear beat bed before begin behind best better
between big bird black blue board boat body bone book born both bottom box boy bread break bring brother brown
build burn bus but buy by call came camp can car card care carry case cat catch cause center chair change check
child choose circle city class clean clear climb clock close cloud coat cold color come common cook cool copy
corn corner cost count country course cover cow cross cry cup cut dance dark day dead deal deep desk did die
dinner do doctor does dog door down draw dream dress drink drive drop dry during each ear early earth east easy
eat edge egg eight else end enough even ever every eye face fact fall family far farm fast father feel feet few
field fight fill find fine finger fire first fish five flat floor flow flower fly food foot for force forest
form four free fresh friend from front fruit full game garden gas get gift girl give glass go gold good grass
gray great green ground group grow guess hair half hand happy hard hat have he head hear heart heat heavy help
her here high hill his hold hole home hope horse hot hour house how huge human hundred hurry ice idea if in
inside iron island it job join jump just keep key kind king kitchen knee know lady lake land large last late
laugh law lay lead learn leave left leg less let letter level lie life lift light like line list listen little
live long look lost lot loud love low lunch machine made make man many map mark may me mean meat meet metal
middle milk mind mine minute miss money month moon more morning most mother mountain mouth move much music must
my name near neck need never new next nice night nine no noise north nose not note now number ocean of off
office often oil old on once one only open or orange other our out over own page paint pair paper park part
party pass past path pay pen people piece place plan plant play point poor power press price public pull push
put queen question quick quiet race rain raise ran reach read ready real red rest rich ride right ring rise
river road rock roll roof room root rose round rule run sad safe sail salt same sand save say school sea seat
second see seed sell send set seven shape sharp she sheep ship shoe shop short should show side sign silver
simple sing sister sit six size skin sky sleep slow small smell smile snow so soft soil some son song soon
sound south space speak spring square stand star start state stay step still stone stop store storm story
street strong such sugar summer sun sure swim table tail take talk tall taste teach team tell ten test than
that the them then there they thin thing think this three time to today together top touch toward town train
tree trip true try turn two under until up use very view village visit voice wait walk wall want war warm wash
watch water way we wear weather week well west what wheel when where white who why wide wild will win wind
window winter wish with woman wood word work world write year yellow yes you young
"""
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Scale:
    """What the server counts: `overhead_tokens` for a prompt of no words, and `tokens_per_word`. Of a server
    that sends no usage: a word is a token.
    """

    overhead_tokens: float = 0.0
    tokens_per_word: float = 1.0

    @classmethod
    def through(cls, few: tuple[int, int], many: tuple[int, int]) -> Scale:
        """From two prompts, each as (words, tokens)."""
        slope = (many[1] - few[1]) / (many[0] - few[0])
        if slope <= 0:  # the server truncates, or counts something else
            return cls()
        return cls(few[1] - slope * few[0], slope)

    def words(self, tokens: int) -> int:
        """At least one."""
        return max(1, round((tokens - self.overhead_tokens) / self.tokens_per_word))


@dataclass(frozen=True)
class Job:
    """One request's prompt and the number of tokens that are asked for."""

    number: int
    prompt: str
    output_tokens: int


class Workload:
    """All prompts and lengths of a run. One seed gives the same ones again, whatever order they are asked for in."""

    def __init__(
        self, seed: int, *, prompt_tokens: Lengths, output_tokens: Lengths, shared_prefix_tokens: int, scale: Scale
    ) -> None:
        self._seed, self._scale = seed, scale
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        shared = round(shared_prefix_tokens / scale.tokens_per_word)
        self._prefix = random_words(random.Random(f"{seed}/prefix"), shared)  # noqa: S311 (no secret)

    def job(self, number: int) -> Job:
        source = random.Random(f"{self._seed}/{number}")  # noqa: S311 (no secret)
        words = random_words(source, self._scale.words(self._prompt_tokens.draw(source)))
        return Job(number, f"{self._prefix} {words}".lstrip(), self._output_tokens.draw(source))


def random_words(source: random.Random, count: int) -> str:
    return " ".join(source.choices(WORDS, k=count))


def sample_words(source: random.Random, count: int) -> str:
    """As long as `count` random words are on average: evenly taken from the list in order of length. For `Scale`, which
    two prompts of chance would make wrong by several percent where a token is a byte.
    """
    by_length = sorted(WORDS, key=len)
    chosen = [by_length[(2 * place + 1) * len(by_length) // (2 * count)] for place in range(count)]
    source.shuffle(chosen)
    return " ".join(chosen)
