#!/usr/bin/env bash
# gguf writes no key at all for an empty string or list, and reads a list of lists back as one list.
#
# Package    gguf 0.19.0.
# Behaviour  add_string(key, "") and add_array(key, []) of GGUFWriter return without an error or a warning, and the
#            file lacks the key; add_bool(key, False) and add_uint32(key, 0) write theirs. The format has a place for
#            both: a string or an array of length 0. A list of lists is written as such, and contents() of
#            GGUFReader's field answers it flattened.
# Seen       "" and [] are missing; [[1, 2], [3]] reads as [1, 2, 3].
# Source     add_string and add_array in gguf_writer.py return early for an empty value. _get_field_parts in
#            gguf_reader.py puts the items of inner arrays into one list; a remark there says that this is to be done.
# Effect     "Set to nothing" and "not set" are one: a copy of a file made with these methods loses keys, and a program
#            that then uses its default (a prefix, a chat template) behaves otherwise than the original says. Where one
#            list of a nested value ends cannot be told.
# Instead    Write through add_key_value(key, "", GGUFValueType.STRING), which keeps an empty string, and treat a
#            missing key of a file by other hands as perhaps empty. Keep nested values as JSON in a string.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0
"$folder/venv/bin/python" - "$folder/file.gguf" <<'PYTHON'
import sys

from gguf import GGUFReader, GGUFValueType, GGUFWriter

writer = GGUFWriter(sys.argv[1], "llama")
writer.add_bool("a.false", False)
writer.add_uint32("a.zero", 0)
writer.add_string("a.text", "x")
writer.add_string("a.empty_text", "")
writer.add_key_value("a.empty_text_by_key_value", "", GGUFValueType.STRING)
writer.add_array("a.list", [1, 2, 3])
writer.add_array("a.empty_list", [])
writer.add_array("a.nested", [[1, 2], [3]])
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

read = {name: field.contents() for name, field in GGUFReader(sys.argv[1]).fields.items() if name.startswith("a.")}
for name, value in read.items():
    print(f"{name:26} {value!r}")
assert read["a.false"] is False and read["a.zero"] == 0 and read["a.text"] == "x" and read["a.list"] == [1, 2, 3]
assert "a.empty_text" not in read, "changed: an empty string is written"
assert "a.empty_list" not in read, "changed: an empty list is written"
assert read["a.empty_text_by_key_value"] == "", "changed: add_key_value leaves out an empty string, too"
assert read["a.nested"] == [1, 2, 3], "changed: a list of lists is not flattened"
print("as found: empty values have no key in the file, and nested lists lose their limits")
PYTHON
