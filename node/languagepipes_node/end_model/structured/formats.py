"""The values of JSON Schema's `format` that are kept, as regular expressions of a whole string.

https://json-schema.org/draft/2020-12/json-schema-validation#section-7 names the RFC of each. Those of which llguidance
would let through more, are stated here; the others are left to it.
"""

from __future__ import annotations

_LONG_MONTHS = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTHS = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_LEAP_YEARS = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
# RFC 3339's full-date; 29 February in leap years alone.
_DATE = f"(?:[0-9]{{4}}-(?:{_LONG_MONTHS}|{_SHORT_MONTHS}|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEARS}-02-29)"
_ZONE = "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
# Without leap seconds: whether one exists depends on the date, and most libraries read none.
_TIME = rf"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{{1,9}})?{_ZONE}"
_LABEL = "[a-zA-Z0-9](?:-?[a-zA-Z0-9]){0,30}"

# format → an expression, or None where llguidance's own is exact.
FORMATS: dict[str, str | None] = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}[tT]{_TIME}$",
    "time": f"^{_TIME}$",
    "duration": None,
    "email": None,
    "hostname": rf"^{_LABEL}(?:\.{_LABEL})*$",
    "ipv4": None,
    "ipv6": None,
    "uri": None,
    "uuid": None,
}
# What an expression does not say.
LONGEST: dict[str, int] = {"hostname": 253}
