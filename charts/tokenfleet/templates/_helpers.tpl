{{/* Names */}}
{{- define "tokenfleet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "tokenfleet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "tokenfleet.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tokenfleet.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tokenfleet.serviceAccountName" -}}
{{- ternary (include "tokenfleet.fullname" .) "default" .Values.serviceAccount.create -}}
{{- end -}}

{{- define "tokenfleet.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "tokenfleet.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") -}}
{{- end -}}

{{/* Labels */}}
{{- define "tokenfleet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tokenfleet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "tokenfleet.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ include "tokenfleet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Of pods: nothing that changes with the chart's own version, which would roll them all. */}}
{{- define "tokenfleet.podLabels" -}}
app.kubernetes.io/name: {{ include "tokenfleet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Names of the pods that serve, and of no other release's, for Prometheus: a Deployment's end with the hash of their
ReplicaSet and five letters (Kubernetes cuts a long name before these), the first ones of groups with the group's number. */}}
{{- define "tokenfleet.podNames" -}}
{{ include "tokenfleet.fullname" . }}-{{ ternary "[0-9]+" "[a-z0-9]{1,10}-?[a-z0-9]{5}" .Values.multiNode.enabled }}
{{- end -}}

{{/* "true" or "". The tri-state `setting` is auto, true or false; `api` is what auto looks for. */}}
{{- define "tokenfleet.isOn" -}}
{{- if eq (toString .setting) "auto" -}}
{{- if .root.Capabilities.APIVersions.Has .api -}}true{{- end -}}
{{- else if eq (toString .setting) "true" -}}true{{- end -}}
{{- end -}}

{{- define "tokenfleet.isAutoscaled" -}}
{{- if ne .Values.autoscaling.kind "none" -}}true{{- end -}}
{{- end -}}

{{/* A TOML value. Numbers from YAML are floats: 4194304 must not become 4.194304e+06. */}}
{{- define "tokenfleet.tomlValue" -}}
{{- if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}
{{- int64 . -}}
{{- else -}}
{{- toJson . -}}
{{- end -}}
{{- end -}}

{{- define "tokenfleet.toml" -}}
{{- range $group, $settings := .Values.config }}
{{- if $settings }}
[{{ $group }}]
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ include "tokenfleet.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end }}
{{- end -}}

{{/* Drain: the grace period is what the server may take, or more. */}}
{{- define "tokenfleet.gracePeriodSeconds" -}}
{{- $drain := .Values.drain -}}
{{- $needed := add $drain.preStopSeconds $drain.timeoutSeconds $drain.marginSeconds | int -}}
{{- $given := $drain.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}
{{- $needed -}}
{{- else if lt (int $given) $needed -}}
{{- fail (printf "drain.terminationGracePeriodSeconds is %d, but preStopSeconds %d + timeoutSeconds %d + marginSeconds %d is %d: streams would be cut" (int $given) (int $drain.preStopSeconds) (int $drain.timeoutSeconds) (int $drain.marginSeconds) $needed) -}}
{{- else -}}
{{- int $given -}}
{{- end -}}
{{- end -}}

{{/* A Kubernetes quantity of memory in MiB, rounded down. */}}
{{- define "tokenfleet.mebibytes" -}}
{{- $text := toString . -}}
{{- $number := regexFind "^[0-9.]+" $text | float64 -}}
{{- $unit := regexReplaceAll "^[0-9.]+" $text "" -}}
{{- $bytes := dict "" 1.0 "k" 1000.0 "Ki" 1024.0 "M" 1000000.0 "Mi" 1048576.0 "G" 1000000000.0 "Gi" 1073741824.0 "T" 1000000000000.0 "Ti" 1099511627776.0 -}}
{{- if not (hasKey $bytes $unit) -}}{{- fail (printf "memory %s: the unit %s is unknown" $text $unit) -}}{{- end -}}
{{- divf (mulf $number (get $bytes $unit)) 1048576.0 | floor | int64 -}}
{{- end -}}

{{/* A Kubernetes quantity of CPU in thousandths. */}}
{{- define "tokenfleet.millicores" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{- trimSuffix "m" $text | float64 | ceil | int64 -}}
{{- else -}}
{{- mulf (float64 $text) 1000.0 | ceil | int64 -}}
{{- end -}}
{{- end -}}

{{/* Whole CPUs of a quantity, rounded up: what the server sees as its cores. */}}
{{- define "tokenfleet.cores" -}}
{{- $text := toString . -}}
{{- if hasSuffix "m" $text -}}
{{- divf (trimSuffix "m" $text | float64) 1000.0 | ceil | int64 -}}
{{- else -}}
{{- float64 $text | ceil | int64 -}}
{{- end -}}
{{- end -}}

{{/* Memory the fleet needs before weights and KV cache of a CPU engine, in MiB: an estimate, see docs/operators.md. */}}
{{- define "tokenfleet.fleetMebibytes" -}}
{{- $engine := default dict .Values.config.engine -}}
{{- $server := default dict .Values.config.server -}}
{{- $ops := default dict .Values.config.ops -}}
{{- $engines := default 1 $engine.engines | int -}}
{{- $workers := default 0 $server.workers | int -}}
{{- $limits := default dict .Values.resources.limits -}}
{{- if and (not $workers) $limits.cpu -}}
{{- $workers = max 1 (sub (include "tokenfleet.cores" $limits.cpu | int) $engines) -}}
{{- end -}}
{{- $workers = max 1 $workers -}}
{{- $ringBytes := default 1048576 $ops.ring_bytes | int64 -}}
{{- $kvBytes := ternary (default 0 $engine.kv_cache_memory_bytes | int64) 0 (eq (int .Values.gpu.count) 0) -}}
{{- $engineMebibytes := ternary 64 512 (eq (default "core" $engine.engine) "sim") -}}
{{- $storeBytes := 67108864 -}}
{{- if hasKey $server "response_store_bytes" -}}{{- $storeBytes = $server.response_store_bytes | int64 -}}{{- end -}}
{{- $shared := div (add (mul $engines (add (mul (add 1 $workers) $ringBytes) $kvBytes)) $storeBytes) 1048576 -}}
{{- add 128 (mul 64 $workers) (mul $engineMebibytes $engines) $shared -}}
{{- end -}}
