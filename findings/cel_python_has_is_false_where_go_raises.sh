#!/usr/bin/env bash
# has(obj.status.phase) is false in Python where obj has no status, and an error in Go: a rule passes one and fails in the other.
#
# Packages   cel-python 0.5.0 (PyPI), github.com/google/cel-go v0.29.2 (Go module; Go 1.26), which API servers use.
# Behaviour  has() asks whether the last field of its path is there. In Go the path before it must be: a missing key is the
#            error "no such key", as the language's definition says, and as it is without has(). In Python it is false, however
#            much of the path is missing, although the same path without has() raises there, too.
# Seen       with {"spec": {}}: has(obj.status) is false in both; has(obj.status.phase) and has(obj.status.phase.x) are false in
#            Python, and "no such key: status" in Go. obj.status.phase == 'x' raises in Python.
# Source     cel-go's evaluation of a presence test qualifies all fields but the last as usual; cel-python answers false for
#            whatever error the operand has.
# Effect     Rules of custom resources, admission policies, and health expressions of Flux that are tested with cel-python are
#            accepted for objects without a status, and end in an error on the cluster: of `!has(obj.status.phase)`, which is
#            to mean "not yet", the Python side is true.
# Instead    Ask for each part in turn: !has(obj.status) || !has(obj.status.phase). Test rules with objects that lack it, in Go.
set -euo pipefail
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check cel-python==0.5.0
mkdir "$folder/go"
cat >"$folder/go/main.go" <<'GO'
package main

import (
	"fmt"

	"github.com/google/cel-go/cel"
)

func main() {
	environment, err := cel.NewEnv(cel.Variable("obj", cel.DynType))
	if err != nil {
		panic(err)
	}
	for _, text := range []string{"has(obj.status)", "has(obj.status.phase)", "has(obj.status.phase.x)"} {
		tree, issues := environment.Compile(text)
		if issues.Err() != nil {
			panic(issues.Err())
		}
		program, err := environment.Program(tree)
		if err != nil {
			panic(err)
		}
		value, _, err := program.Eval(map[string]any{"obj": map[string]any{"spec": map[string]any{}}})
		if err != nil {
			fmt.Println(text, "raises", err)
		} else {
			fmt.Println(text, "is", value)
		}
	}
}
GO
(cd "$folder/go" && go mod init finding && go get github.com/google/cel-go/cel@v0.29.2) 2>/dev/null
go_says=$(cd "$folder/go" && go run .)
GO_SAYS=$go_says "$folder/venv/bin/python" - <<'PYTHON'
import os

import celpy
from celpy.adapter import json_to_cel


def python(text: str) -> str:
    environment = celpy.Environment()
    try:
        value = environment.program(environment.compile(text)).evaluate({"obj": json_to_cel({"spec": {}})})
    except celpy.CELEvalError:
        return f"{text} raises"
    return f"{text} is {str(bool(value)).lower()}"


in_go = os.environ["GO_SAYS"].splitlines()
asked = ["has(obj.status)", "has(obj.status.phase)", "has(obj.status.phase.x)"]
in_python = [python(text) for text in asked]
print("Go:    ", "; ".join(in_go))
print("Python:", "; ".join(in_python))
assert in_python == [f"{text} is false" for text in asked], "changed: cel-python answers otherwise"
assert in_go == [f"{asked[0]} is false", *(f"{text} raises no such key: status" for text in asked[1:])], "changed: cel-go"
assert python("obj.status.phase == 'x'").endswith("raises")
print("as found: has() hides a missing parent in Python and not in Go")
PYTHON
