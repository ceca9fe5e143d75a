{{/* The pod that serves: of the Deployment, and the first one of each group of a LeaderWorkerSet. */}}
{{- define "tokenfleet.podTemplate" -}}
{{- $v := .Values -}}
metadata:
  labels:
    {{- include "tokenfleet.podLabels" . | nindent 4 }}
    app.kubernetes.io/component: server
    llm-d.ai/engine-type: vllm  # the metric names an endpoint picker reads
    {{- with $v.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "tokenfleet.toml" . | sha256sum }}
    kubectl.kubernetes.io/default-container: server
    {{- with $v.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tokenfleet.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "tokenfleet.gracePeriodSeconds" . }}
  {{- with $v.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $v.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- include "tokenfleet.podSecurity" . | nindent 2 }}
  {{- if $v.multiNode.enabled }}
  initContainers:
    {{- include "tokenfleet.vllmContainer" . | nindent 4 }}
      restartPolicy: Always  # a sidecar: it ends after the server, whose streams drain through it
  {{- end }}
  containers:
    - name: server
      image: {{ include "tokenfleet.image" . }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [serve]
      env:
        - {name: TOKENFLEET_CONFIG, value: /etc/tokenfleet/fleet.toml}
        - {name: TOKENFLEET_HOST, value: {{ $v.service.listenAddress | quote }}}
        - {name: TOKENFLEET_PORT, value: "8000"}
        - {name: TOKENFLEET_OPS_HOST, value: {{ $v.service.listenAddress | quote }}}
        - {name: TOKENFLEET_OPS_PORT, value: "8001"}
        - {name: TOKENFLEET_PRE_STOP_S, value: {{ $v.drain.preStopSeconds | quote }}}
        - {name: TOKENFLEET_DRAIN_TIMEOUT_S, value: {{ $v.drain.timeoutSeconds | quote }}}
        - {name: TOKENFLEET_CACHE_DIR, value: /cache/weights}
        - {name: NUMBA_CACHE_DIR, value: /cache/numba}
        - {name: TRITON_CACHE_DIR, value: /cache/triton}
        - {name: FLASH_ATTENTION_CUTE_DSL_CACHE_DIR, value: /cache/flash-attn-4}
        - {name: XDG_CACHE_HOME, value: /cache}
        - {name: HOME, value: /tmp}
        {{- if ne $v.model.source "embedded" }}
        - {name: TOKENFLEET_MODEL, value: {{ printf "/models/%s" $v.model.path | trimSuffix "/" | quote }}}
        {{- end }}
        {{- if $v.multiNode.enabled }}
        - {name: TOKENFLEET_ENGINE, value: vllm}
        - {name: TOKENFLEET_VLLM_HANDSHAKE, value: "tcp://127.0.0.1:{{ $v.multiNode.port }}"}
        {{- end }}
        {{- with $v.apiKeys.existingSecret }}
        {{- if $v.apiKeys.isFile }}
        - {name: TOKENFLEET_API_KEY_FILE, value: {{ printf "/etc/tokenfleet-keys/%s" $v.apiKeys.key | quote }}}
        {{- else }}
        - name: TOKENFLEET_API_KEY
          valueFrom:
            secretKeyRef:
              name: {{ . }}
              key: {{ $v.apiKeys.key }}
        {{- end }}
        {{- end }}
        {{- if $v.tls.existingSecret }}
        - {name: TOKENFLEET_SSL_CERTFILE, value: {{ printf "/etc/tokenfleet-tls/%s" $v.tls.certificateKey | quote }}}
        - {name: TOKENFLEET_SSL_KEYFILE, value: {{ printf "/etc/tokenfleet-tls/%s" $v.tls.privateKeyKey | quote }}}
        {{- end }}
        {{- with $v.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        - {name: http, containerPort: 8000, protocol: TCP}
        - {name: ops, containerPort: 8001, protocol: TCP}
      startupProbe:  # has been ready once
        httpGet: {path: /startupz, port: ops}
        periodSeconds: {{ $v.probes.startup.periodSeconds }}
        timeoutSeconds: {{ $v.probes.startup.timeoutSeconds }}
        failureThreshold: {{ divf $v.probes.startup.budgetSeconds $v.probes.startup.periodSeconds | ceil | int }}
      readinessProbe:  # a request sent now would be served
        httpGet: {path: /readyz, port: ops}
        {{- toYaml $v.probes.readiness | nindent 8 }}
      livenessProbe:  # the loops turn; answered by the supervisor, whatever the workers have to do
        httpGet: {path: /livez, port: ops}
        {{- toYaml $v.probes.liveness | nindent 8 }}
      resources:
        {{- range $kind := list "requests" "limits" }}
        {{ $kind }}:
          {{- with get $v.resources $kind }}
          {{- toYaml . | nindent 10 }}
          {{- end }}
          {{- if and (gt (int $v.gpu.count) 0) (not $v.multiNode.enabled) }}
          {{ $v.gpu.resourceName }}: {{ $v.gpu.count }}
          {{- end }}
        {{- end }}
      {{- include "tokenfleet.containerSecurity" . | nindent 6 }}
      volumeMounts:
        - {name: config, mountPath: /etc/tokenfleet, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: cache, mountPath: /cache}
        {{- if and $v.apiKeys.existingSecret $v.apiKeys.isFile }}
        - {name: keys, mountPath: /etc/tokenfleet-keys, readOnly: true}
        {{- end }}
        {{- if $v.tls.existingSecret }}
        - {name: tls, mountPath: /etc/tokenfleet-tls, readOnly: true}
        {{- end }}
        {{- if ne $v.model.source "embedded" }}
        - {name: model, mountPath: /models, readOnly: true}
        {{- end }}
        {{- with $v.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "tokenfleet.fullname" . }}
    {{- if and $v.apiKeys.existingSecret $v.apiKeys.isFile }}
    - name: keys
      secret:
        secretName: {{ $v.apiKeys.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- with $v.tls.existingSecret }}
    - name: tls
      secret:
        secretName: {{ . }}
        defaultMode: 0440
    {{- end }}
    {{- include "tokenfleet.sharedVolumes" . | nindent 4 }}
    {{- with $v.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if $v.topologySpread.enabled }}
  topologySpreadConstraints:
    {{- range $v.topologySpread.keys }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: {{ $v.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "tokenfleet.selectorLabels" $ | nindent 10 }}
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  {{- include "tokenfleet.placing" . | nindent 2 }}
{{- end -}}

{{/* What the pods of a group have in common with it. */}}
{{- define "tokenfleet.podSecurity" -}}
{{- $v := .Values -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $v.securityContext.runAsUser }}
  runAsGroup: {{ $v.securityContext.runAsUser }}
  fsGroup: {{ $v.securityContext.fsGroup }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "tokenfleet.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  privileged: false
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "tokenfleet.sharedVolumes" -}}
{{- $v := .Values -}}
- name: tmp
  emptyDir:
    sizeLimit: 256Mi
- name: cache
  {{- if eq $v.cache.type "emptyDir" }}
  emptyDir:
    sizeLimit: {{ $v.cache.size }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-cache" (include "tokenfleet.fullname" .)) $v.cache.existingClaim }}
  {{- end }}
{{- if eq $v.model.source "claim" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ $v.model.claim }}
    readOnly: true
{{- else if eq $v.model.source "image" }}
- name: model
  image:
    reference: {{ $v.model.image }}
    pullPolicy: {{ $v.image.pullPolicy }}
{{- end }}
{{- if $v.multiNode.enabled }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ $v.multiNode.sharedMemory }}
{{- end }}
{{- end -}}

{{- define "tokenfleet.placing" -}}
{{- $v := .Values -}}
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or $v.tolerations (gt (int $v.gpu.count) 0) }}
tolerations:
  {{- if gt (int $v.gpu.count) 0 }}
  - {key: {{ $v.gpu.resourceName }}, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with $v.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}
