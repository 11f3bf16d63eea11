#!/usr/bin/env bash
# A CRD's `default: {}` is judged by the rules of its object before the defaults inside that object are filled in.
#
# Package    k8s.io/apiextensions-apiserver v0.37.2 (the API server's own code for CRDs; Kubernetes 1.37.2).
# Behaviour  A field `rollout` has `default: {}`, and within it `maxSurge` has `default: 1`. A rule of `rollout` that reads
#            self.maxSurge makes the CRD invalid: the default is said to fail the rule, since maxSurge is missing. Where an
#            object leaves `rollout` out, the API server fills in {maxSurge: 1}, which keeps the rule.
# Seen       "Invalid value: "object": no such key: maxSurge evaluating rule: self.maxSurge > 0" for the CRD, and {"rollout":
#            {"maxSurge": 1}} as what an object that leaves it out becomes.
# Source     in pkg/apiserver/schema/defaulting/validation.go, a default is checked as it is written, by the schema and then by
#            the rules; nothing fills in the defaults within it first. For objects that are stored, defaulting comes before
#            the rules.
# Effect     The usual pair of nested defaults, which keeps optional objects short, cannot have such a rule; kubectl apply of the
#            CRD is refused with a message about a key that has a default.
# Instead    Guard each read in the rule with has(), or write the nested values out in the outer default.
set -euo pipefail
folder=$(mktemp -d)
trap 'chmod -R u+w "$folder"; rm -rf "$folder"' EXIT
cd "$folder"
cat >main.go <<'GO'
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	v1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
)

const crd = `{
  "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
  "metadata": {"name": "pipes.example.com"},
  "spec": {
    "group": "example.com", "scope": "Namespaced",
    "names": {"plural": "pipes", "singular": "pipe", "kind": "Pipe", "listKind": "PipeList"},
    "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
      "type": "object",
      "properties": {"rollout": {
        "type": "object", "default": DEFAULT,
        "x-kubernetes-validations": [{"rule": "RULE"}],
        "properties": {"maxSurge": {"type": "integer", "default": 1}}
      }}
    }}}]
  },
  "status": {"storedVersions": ["v1"]}
}`

func read(outer, rule string) *apiextensions.CustomResourceDefinition {
	text := strings.Replace(strings.Replace(crd, "DEFAULT", outer, 1), "RULE", rule, 1)
	scheme := runtime.NewScheme()
	utilruntime.Must(apiextensions.AddToScheme(scheme))
	utilruntime.Must(v1.AddToScheme(scheme))
	var external v1.CustomResourceDefinition
	utilruntime.Must(json.Unmarshal([]byte(text), &external))
	scheme.Default(&external)
	var internal apiextensions.CustomResourceDefinition
	utilruntime.Must(scheme.Convert(&external, &internal, nil))
	return &internal
}

func problems(outer, rule string) string {
	var found []string
	for _, each := range validation.ValidateCustomResourceDefinition(context.Background(), read(outer, rule)) {
		found = append(found, each.Error())
	}
	return strings.Join(found, "; ")
}

func require(good bool, what string) {
	if !good {
		fmt.Println("no longer so:", what)
		os.Exit(1)
	}
	fmt.Println("as stated:", what)
}

func main() {
	said := problems("{}", "self.maxSurge > 0")
	fmt.Println("the CRD's problems:", said)
	require(strings.Contains(said, "no such key: maxSurge"), "default {} is refused for a key that has a default")
	require(problems("{}", "!has(self.maxSurge) || self.maxSurge > 0") == "", "with has() it is accepted")
	require(problems(`{"maxSurge": 1}`, "self.maxSurge > 0") == "", "with the value written out it is accepted")

	accepted := read("{}", "!has(self.maxSurge) || self.maxSurge > 0")
	schema, err := structural.NewStructural(accepted.Spec.Validation.OpenAPIV3Schema)
	utilruntime.Must(err)
	object := map[string]any{}
	defaulting.Default(object, schema)
	text, _ := json.Marshal(object)
	fmt.Println("an object that leaves rollout out becomes:", string(text))
	require(string(text) == `{"rollout":{"maxSurge":1}}`, "what an object gets has the key")
}
GO
cat >go.mod <<'GO'
module finding

go 1.26
GO
export GOFLAGS=-mod=mod GOPATH="$folder/go" GOCACHE="$folder/cache"
go get k8s.io/apiextensions-apiserver@v0.37.2 2>/dev/null
go run .
