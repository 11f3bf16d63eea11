#!/usr/bin/env bash
# The ByteFallback decoder of tokenizers replaces every byte of a run that is not UTF-8 as a whole, the valid ones too.
#
# Package    tokenizers 0.23.3.
# Behaviour  Tokens like <0x41> that follow each other are decoded together. If the run is not UTF-8 as a whole, each
#            of its bytes becomes U+FFFD: "A" and a complete "€" in front of half a character are lost with it.
#            Python's bytes.decode(errors="replace") replaces what is wrong and keeps the rest.
# Seen       the bytes 41 E2 decode to "\ufffd\ufffd", where Python answers "A\ufffd".
# Source     the decoder ByteFallback (decoders/byte_fallback.rs) collects the bytes of a run, tries to read all of
#            them as one UTF-8 string, and on an error pushes one replacement character for each byte.
# Effect     Text decoded again after each token, as streaming servers do, changes characters that were there already:
#            "A" turns into U+FFFD as soon as the first byte of the next character follows, and comes back when it is
#            complete.
# Instead    Keep the bytes of a run in an incremental UTF-8 decoder, and give out what is complete.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers.decoders import ByteFallback, Fuse, Sequence

decoder = Sequence([ByteFallback(), Fuse()])


def decoded(data: bytes) -> str:
    text = decoder.decode([f"<0x{byte:02X}>" for byte in data])
    print(f"{data!r:32} ByteFallback {ascii(text):48} Python {data.decode(errors='replace')!a}")
    return text


whole = "A\u20acB".encode()
assert decoded(whole) == "A\u20acB", "changed: UTF-8 is not decoded"
assert decoded(whole[:1]) == "A"
assert decoded(whole[:2]) == "\ufffd" * 2, "changed: the valid A in front of half a character is kept"
assert decoded(whole[:4]) == "A\u20ac"
assert decoded(whole[:4] + b"\xe2") == "\ufffd" * 5, "changed: a valid beginning is kept"
print("as found: one byte that is not (yet) UTF-8 turns its whole run into U+FFFD, byte by byte")
PYTHON
