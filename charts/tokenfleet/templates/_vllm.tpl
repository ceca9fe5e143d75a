{{/* vLLM's part of a group over several nodes: rank 0 beside the server, the others alone in their pods. The variables come
from the LeaderWorkerSet (its API v1); the flags are those of `vllm serve`, 0.32. What the server promises, vLLM is told. */}}
{{- define "tokenfleet.vllmContainer" -}}
{{- $v := .Values -}}
{{- $m := $v.multiNode -}}
- name: engine
  image: {{ $m.image }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  command: [vllm, serve, {{ printf "/models/%s" $v.model.path | trimSuffix "/" | quote }}]
  args:
    - --headless
    - --tensor-parallel-size={{ $m.tensorParallelSize }}
    - --pipeline-parallel-size={{ $m.pipelineParallelSize }}
    - --nnodes=$(LWS_GROUP_SIZE)
    - --node-rank=$(LWS_WORKER_INDEX)
    - --master-addr=$(LWS_LEADER_ADDRESS)
    - --data-parallel-address=127.0.0.1
    - --data-parallel-rpc-port={{ $m.port }}
    {{- $model := default dict $v.config.model }}
    {{- $engine := default dict $v.config.engine }}
    {{- with $model.max_model_len }}
    - --max-model-len={{ int . }}
    {{- end }}
    {{- with $model.dtype }}
    - --dtype={{ . }}
    {{- end }}
    - --max-num-seqs={{ default 256 $engine.max_num_seqs | int }}
    - --seed={{ default 0 $engine.seed | int64 }}
    - --scheduling-policy=priority
    {{- with $engine.gpu_memory_utilization }}
    - --gpu-memory-utilization={{ . }}
    {{- end }}
    {{- if eq (toString $engine.enable_prefix_caching) "false" }}
    - --no-enable-prefix-caching
    {{- end }}
    {{- range $m.extraArgs }}
    - {{ . | quote }}
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    - {name: XDG_CACHE_HOME, value: /cache}
    - {name: VLLM_NO_USAGE_STATS, value: "1"}
    {{- with $m.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  resources:
    {{- range $kind := list "requests" "limits" }}
    {{ $kind }}:
      {{- with get $m.resources $kind }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{ $v.gpu.resourceName }}: {{ $v.gpu.count }}
    {{- end }}
  {{- include "tokenfleet.containerSecurity" . | nindent 2 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: cache, mountPath: /cache}
    - {name: shm, mountPath: /dev/shm}
    - {name: model, mountPath: /models, readOnly: true}
{{- end -}}
