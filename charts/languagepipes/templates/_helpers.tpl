{{- define "languagepipes.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/* The first part of every name: release and chart, once if one holds the other; at most 40 characters, so that
what is put behind it fits a DNS label. */}}
{{- define "languagepipes.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "languagepipes.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The Deployment, its Service, its account, its Lease and what else is the operator's in the release's namespace. */}}
{{- define "languagepipes.operator" -}}
{{- include "languagepipes.fullname" . }}-operator
{{- end -}}

{{/* Cluster-scoped names carry the namespace, so that two releases of one name do not meet. */}}
{{- define "languagepipes.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "languagepipes.fullname" .) -}}
{{- end -}}

{{- define "languagepipes.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "languagepipes.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What never changes in the life of a release: a Deployment's selector is immutable. */}}
{{- define "languagepipes.selectorLabels" -}}
app.kubernetes.io/name: {{ include "languagepipes.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/ */}}
{{- define "languagepipes.labels" -}}
{{ include "languagepipes.selectorLabels" . }}
{{ include "languagepipes.commonLabels" . }}
{{- end -}}

{{/* The labels that tell no object from another. */}}
{{- define "languagepipes.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: languagepipes
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* An image's full name from {repository, tag, digest}: (list . .Values.image). */}}
{{- define "languagepipes.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{/* The container part of the restricted Pod Security profile. */}}
{{- define "languagepipes.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The pod part of the restricted Pod Security profile. */}}
{{- define "languagepipes.podSecurityContext" -}}
runAsNonRoot: true
{{- if .Values.securityContext.fixedIds }}
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* What the operator does in a namespace that it serves. Of pipes it writes the status alone; the children are what it
makes for a pipe. Pods and events it reads to say what is wrong. */}}
{{- define "languagepipes.namespaceRules" -}}
- apiGroups: [languagepipes.io]
  resources: [languagepipes]
  verbs: [get, list, watch]
- apiGroups: [languagepipes.io]
  resources: [languagepipes/status]
  verbs: [patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services, secrets, configmaps, persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- end -}}
