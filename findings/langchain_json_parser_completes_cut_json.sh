#!/usr/bin/env bash
# LangChain's JsonOutputParser takes JSON that was cut off for whole, and partial=False does not change that.
#
# Package    langchain-core 1.8.3.
# Behaviour  By its documentation, JsonOutputParser raises OutputParserException for text that is no valid JSON, and with
#            partial=False, the default, gives the full object. But text that only begins as JSON is completed: open
#            strings, lists and objects are closed, and what cannot be completed is left out.
# Seen       '{"total": 12' is {"total": 12}, where the text went on with 12500}; '["a", "b' is ["a", "b"].
# Source     parse_json_markdown in langchain_core/utils/json.py has parse_partial_json as the default of its parser, and
#            parse_result calls it without naming another; partial only decides whether errors become None.
# Effect     An answer that max_tokens cut short goes through the chain as data: a number without its last digits, a list
#            without its last items, an object without its last keys.
# Instead    parse_json_markdown(text, parser=json.loads), or PydanticOutputParser with all fields required (it parses in
#            the same way: a shorter number or string still passes), or look at finish_reason first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check langchain-core==1.8.3
"$folder/venv/bin/python" - <<'PYTHON'
import json

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import Generation
from langchain_core.utils.json import parse_json_markdown
from pydantic import BaseModel


class Invoice(BaseModel):
    total: int


WHOLE, CUT = '{"total": 12500}', '{"total": 12'
parser = JsonOutputParser()


def refused(parse, text: str) -> bool:
    try:
        print(f"{text!r:20} {parse(text)}")
    except (OutputParserException, json.JSONDecodeError) as error:
        print(f"{text!r:20} {type(error).__name__}")
        return True
    return False


assert parser.parse(WHOLE) == {"total": 12500}
assert refused(parser.parse, "no JSON"), "text that is no JSON is not refused"
assert not refused(parser.parse, CUT), "changed: JSON that was cut is refused"
assert parser.parse(CUT) == {"total": 12}, "changed: what becomes of a number that was cut"
assert parser.parse('["a", "b') == ["a", "b"], "changed: what becomes of a list that was cut"
not_partial = parser.parse_result([Generation(text=CUT)], partial=False)
assert not_partial == {"total": 12}, "changed: partial=False refuses JSON that was cut"
assert PydanticOutputParser(pydantic_object=Invoice).parse(CUT).total == 12, "changed: the parser for models refuses it"
assert refused(lambda text: parse_json_markdown(text, parser=json.loads), CUT), "json.loads does not refuse it"
print("as found: JSON that was cut off is data")
PYTHON
