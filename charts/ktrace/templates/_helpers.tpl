{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}
{{- define "ktrace.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "ktrace.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "ktrace.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "ktrace.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "ktrace.operator" -}}
{{ include "ktrace.fullname" . }}-operator
{{- end }}

{{- define "ktrace.agent" -}}
{{ include "ktrace.fullname" . }}-agent
{{- end }}

{{- define "ktrace.release" -}}
{{ include "ktrace.fullname" . }}-release
{{- end }}

{{- define "ktrace.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "ktrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ktrace
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "ktrace.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ktrace.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- /* Namespaces whose snapshots the operator serves, as JSON: {"names": [...]}. */ -}}
{{- define "ktrace.served" -}}
{{- $names := prepend .Values.namespaces.extra .Values.namespaces.agents.name | uniq }}
{{- if has .Release.Namespace $names }}
{{- fail (printf "%s is the operator's own namespace: agents are privileged and need a different one" .Release.Namespace) }}
{{- end }}
{{- dict "names" $names | toJson }}
{{- end }}

{{- /* The served namespaces as text. */ -}}
{{- define "ktrace.servedList" -}}
{{- join ", " (include "ktrace.served" . | fromJson).names }}
{{- end }}

{{- /* Image of (dict "root" $ "image" .Values.x.image). */ -}}
{{- define "ktrace.image" -}}
{{- $registry := .root.Values.image.registry | trimSuffix "/" }}
{{- if and (empty $registry) (not (contains "/" .image.repository)) }}
{{- include "ktrace.noRegistry" .root | fail }}
{{- end }}
{{- $name := empty $registry | ternary .image.repository (printf "%s/%s" $registry .image.repository) }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- /* Error for a chart without a registry: no public registry has the images. */ -}}
{{- define "ktrace.noRegistry" -}}
{{- $build := "docker build --push -f Dockerfile.%s -t REGISTRY/ktrace-%s:%s ." -}}
image.registry is not set: build and push the images to a registry of your own with `{{ printf $build "operator" "operator" .Chart.AppVersion }}` and `{{ printf $build "agent" "agent" .Chart.AppVersion }}`, then add --set image.registry=REGISTRY (docs/install.md)
{{- end }}

{{- /* The settings file of the operator: ktrace_operator.settings.Settings. */ -}}
{{- define "ktrace.settings" -}}
{{- $lease := .Values.operator.lease }}
{{- $shortest := add $lease.renewSeconds 8 | int }}{{/* LONGEST_WRITE_SECONDS */}}
{{- if lt (int $lease.durationSeconds) $shortest }}
{{- fail (printf "operator.lease.durationSeconds is %d: it must be at least %d, renewSeconds + 8, since a write may take 8 s" (int $lease.durationSeconds) $shortest) }}
{{- end }}
namespaces: {{ (include "ktrace.served" . | fromJson).names | toJson }}
podTargets: {{ .Values.podTargets.namespaces | toJson }}
agent:
  image: {{ include "ktrace.image" (dict "root" . "image" .Values.agent.image) | quote }}
  platforms: {{ .Values.agent.platforms | toJson }}
  privileged: {{ .Values.agent.privileged }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  imagePullSecrets: {{ .Values.image.pullSecrets | toJson }}
  serviceAccount: {{ include "ktrace.agent" . }}
  resources:
    {{- range $kind, $amounts := .Values.agent.resources }}
    {{ $kind }}:
      {{- range $name, $amount := $amounts }}
      {{ $name }}: {{ $amount | quote }}
      {{- else }} {}
      {{- end }}
    {{- end }}
  priorityClass: {{ .Values.agent.priorityClassName | quote }}
  criSockets: {{ .Values.agent.criSockets | toJson }}
  terminationGraceSeconds: {{ .Values.agent.terminationGraceSeconds | int }}
limits:
  maxNodes: {{ .Values.limits.maxNodes | int }}
  maxDuration: {{ .Values.limits.maxDuration }}
  parallelism: {{ .Values.limits.parallelism | int }}
  startSeconds: {{ .Values.limits.startSeconds | int }}
  uploadSeconds: {{ .Values.limits.uploadSeconds | int }}
  busySeconds: {{ .Values.limits.busySeconds | int }}
output:
  {{- with .Values.output.default }}
  default: {{ toJson . }}
  {{- end }}
  s3: {{ .Values.output.s3 | toJson }}
  allowPvc: {{ .Values.output.allowPvc }}
lease:
  enabled: true
  name: {{ include "ktrace.operator" . }}
  namespace: {{ .Release.Namespace }}
  durationSeconds: {{ .Values.operator.lease.durationSeconds | int }}
  renewSeconds: {{ .Values.operator.lease.renewSeconds | int }}
metricsPort: 8080
probePort: 8081
writesPerSecond: {{ .Values.operator.writesPerSecond }}
logLevel: {{ .Values.operator.logLevel }}
logFormat: {{ .Values.operator.logFormat }}
{{- end }}

{{- /* Security context of every container but the agent. */ -}}
{{- define "ktrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "ktrace.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "ktrace.operatorSubject" -}}
- kind: ServiceAccount
  name: {{ include "ktrace.operator" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "ktrace.operatorUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "ktrace.operator" . }}
{{- end }}

{{- define "ktrace.releaseUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:{{ include "ktrace.release" . }}
{{- end }}

{{- /* A list in CEL syntax. */ -}}
{{- define "ktrace.celList" -}}
[{{ range $index, $one := . }}{{ if $index }}, {{ end }}'{{ $one }}'{{ end }}]
{{- end }}

{{- /* Regular expression of agent pod names: snapshot-uid8-nodehash. No other controller uses this form. */ -}}
{{- define "ktrace.agentName" -}}
r'^[a-z0-9.-]{1,40}-[0-9a-f]{8}-[0-9a-f]{10}$'
{{- end }}

{{- /* Binding of the policy (dict "root" $ "name" "snapshots") with the action Deny. */ -}}
{{- define "ktrace.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ include "ktrace.fullname" .root }}-{{ .name }}
  labels:
    {{- include "ktrace.labels" .root | nindent 4 }}
spec:
  policyName: {{ include "ktrace.fullname" .root }}-{{ .name }}
  validationActions: [Deny]
{{- end }}

{{- /* An allowed endpoint as a regular expression: * matches one label of the host name, and the
scheme's default port is optional. */ -}}
{{- define "ktrace.endpointPattern" -}}
{{- $port := hasPrefix "https:" . | ternary ":443" ":80" }}
{{- $quoted := regexQuoteMeta (trimSuffix $port .) | replace "\\*" "[^.:/]*" }}
{{- if regexMatch ":[0-9]+$" (trimSuffix $port .) -}}
r'^(?i){{ $quoted }}$'
{{- else -}}
r'^(?i){{ $quoted }}({{ $port }})?$'
{{- end }}
{{- end }}

{{- /* Annotations of a pre-delete hook with the given weight. */ -}}
{{- define "ktrace.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
