{{/* The name of everything. Short enough that "-release-workers" still fits in 63 characters.
A release named after the chart is not called ottoscaler-ottoscaler. */}}
{{- define "ottoscaler.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What selects the main pod and nothing else: workers carry the same instance label, but
another component. Selectors of a Deployment cannot be changed later. */}}
{{- define "ottoscaler.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ include "ottoscaler.fullname" . }}
app.kubernetes.io/component: main
{{- end -}}

{{/* Labels of every object, without the component. */}}
{{- define "ottoscaler.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ include "ottoscaler.fullname" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.user }}
ottoscaler.dev/user: {{ . }}
{{- end }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ottoscaler.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* The account whose token opens the rotated logs of the nodes. */}}
{{- define "ottoscaler.nodeLogsName" -}}
{{ include "ottoscaler.fullname" . }}-node-logs
{{- end -}}

{{/* The log server that logServer.enabled installs. */}}
{{- define "ottoscaler.logServerName" -}}
{{ include "ottoscaler.fullname" . }}-logs
{{- end -}}

{{- define "ottoscaler.logServerSelectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ include "ottoscaler.fullname" . }}
app.kubernetes.io/component: log-server
{{- end -}}

{{- define "ottoscaler.logServerImage" -}}
{{- with .Values.logServer.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Where the relay sends to: to the log server beside it, if there is one, else where it is told. */}}
{{- define "ottoscaler.logServerAddr" -}}
{{- if .Values.logServer.enabled -}}
{{ include "ottoscaler.logServerName" . }}.{{ .Release.Namespace }}.svc:50051
{{- else -}}
{{ get .Values.logRelay.env "LOG_SERVER_ADDR" }}
{{- end -}}
{{- end -}}

{{/* Numbers of values are floats by the time they get here; 1000000 must not become 1e+06. */}}
{{- define "ottoscaler.scalar" -}}
{{- if kindIs "float64" . }}{{ printf "%.0f" . }}{{ else }}{{ toString . }}{{ end -}}
{{- end -}}

{{/* The variables of a program: what it is given, then what the values say. An empty value is
left out, because a variable that is set but empty hides the program's default. */}}
{{- define "ottoscaler.env" -}}
{{- range $name, $value := .env }}
{{- $value := include "ottoscaler.scalar" (ternary "" $value (kindIs "invalid" $value)) }}
{{- if $value }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- with .extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whose installation it is. */}}
{{- define "ottoscaler.identity" -}}
- name: NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: INSTANCE_ID
  value: {{ include "ottoscaler.fullname" . | quote }}
{{- with .Values.user }}
- name: INSTANCE_USER
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{- define "ottoscaler.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "ottoscaler.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Three questions, three answers: has it started, does it live, can it work. The last one is
false while Redis, the API server or the queue is away; that must not restart anything. */}}
{{- define "ottoscaler.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 1
  timeoutSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: {{ . }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: {{ . }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{/* The Kubernetes token, as a volume that a container must ask for. It is what the kubelet would
mount into every container of the pod, with a token that it renews. */}}
{{- define "ottoscaler.tokenVolume" -}}
- name: kube-api-access
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]
{{- end -}}

{{- define "ottoscaler.tokenMount" -}}
- name: kube-api-access
  mountPath: /var/run/secrets/kubernetes.io/serviceaccount
  readOnly: true
{{- end -}}

{{/* The files for the way to the log server, as sources of a projected volume. */}}
{{- define "ottoscaler.logServerSources" -}}
{{- with .Values.logRelay.tls.caSecret }}{{ if .name }}
- secret: {name: {{ .name }}, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}{{ end }}
{{- with .Values.logRelay.tls.certSecret }}{{ if .name }}
- secret: {name: {{ .name }}, items: [{key: {{ .certKey | quote }}, path: tls.crt}, {key: {{ .keyKey | quote }}, path: tls.key}]}
{{- end }}{{ end }}
{{- with .Values.logRelay.tokenSecret }}{{ if .name }}
- secret: {name: {{ .name }}, items: [{key: {{ .key | quote }}, path: token}]}
{{- end }}{{ end }}
{{- end -}}

{{/* Where those files are. */}}
{{- define "ottoscaler.logServerEnv" -}}
{{- if .Values.logRelay.tls.caSecret.name }}
- {name: LOG_SERVER_CA_FILE, value: /etc/ottoscaler/log-server/ca.crt}
{{- end }}
{{- if .Values.logRelay.tls.certSecret.name }}
- {name: LOG_SERVER_CERT_FILE, value: /etc/ottoscaler/log-server/tls.crt}
- {name: LOG_SERVER_KEY_FILE, value: /etc/ottoscaler/log-server/tls.key}
{{- end }}
{{- if .Values.logRelay.tokenSecret.name }}
- {name: LOG_SERVER_TOKEN_FILE, value: /etc/ottoscaler/log-server/token}
{{- end }}
{{- end -}}

{{/* The Secrets that the pools with logs.maskSecrets refer to, one a line: what the scaler writes on
their workers, and the log relay reads. */}}
{{- define "ottoscaler.maskedSecrets" -}}
{{- $names := dict -}}
{{- range .Values.pools -}}
{{- if get (get (. | default dict) "logs" | default dict) "maskSecrets" -}}
{{- $spec := dig "template" "spec" dict . -}}
{{- range concat (get $spec "containers" | default list) (get $spec "initContainers" | default list) -}}
{{- range get . "env" | default list -}}
{{- $_ := set $names (dig "valueFrom" "secretKeyRef" "name" "" .) true -}}
{{- end -}}
{{- range get . "envFrom" | default list -}}
{{- $_ := set $names (dig "secretRef" "name" "" .) true -}}
{{- end -}}
{{- end -}}
{{- range get $spec "volumes" | default list -}}
{{- $_ := set $names (dig "secret" "secretName" "" .) true -}}
{{- range dig "projected" "sources" list . -}}
{{- $_ := set $names (dig "secret" "name" "" .) true -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- without (keys $names) "" | sortAlpha | join "\n" -}}
{{- end -}}

{{/* A Go duration (1m30s) in seconds, as a number with a fraction. */}}
{{- define "ottoscaler.seconds" -}}
{{- $sum := 0.0 -}}
{{- range regexFindAll "[0-9.]+(ns|us|µs|ms|s|m|h)" . -1 -}}
{{- $unit := regexFind "[a-zµ]+$" . -}}
{{- $factor := get (dict "ns" 0.000000001 "us" 0.000001 "µs" 0.000001 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) $unit -}}
{{- $sum = addf $sum (mulf (trimSuffix $unit . | float64) $factor) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* The pool file. A pool that names no service account must not get the namespace's default one:
that may have permissions. */}}
{{- define "ottoscaler.pools" -}}
{{- $pools := dict -}}
{{- range $name, $pool := .Values.pools -}}
{{- if $pool -}}
{{- $pool = deepCopy $pool -}}
{{- $template := get $pool "template" | default dict -}}
{{- $spec := get $template "spec" | default dict -}}
{{- if not (hasKey $spec "serviceAccountName") -}}
{{- $_ := set $spec "serviceAccountName" (printf "%s-worker" (include "ottoscaler.fullname" $)) -}}
{{- end -}}
{{- if not (hasKey $spec "automountServiceAccountToken") -}}
{{- $_ := set $spec "automountServiceAccountToken" false -}}
{{- end -}}
{{- $_ := set $template "spec" $spec -}}
{{- $_ := set $pool "template" $template -}}
{{- $_ := set $pools $name $pool -}}
{{- end -}}
{{- end -}}
{{- $limits := dict -}}
{{- range $name, $limit := .Values.poolLimits -}}
{{- if not (kindIs "invalid" $limit) -}}
{{- $_ := set $limits $name $limit -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "limits" $limits "pools" $pools) -}}
{{- end -}}

{{/* What the schema cannot say, because it takes two values to know it. */}}
{{- define "ottoscaler.validate" -}}
{{- if not (or (get .Values.consumer.env "REDIS_HOST") (get .Values.consumer.env "REDIS_ADDRS")) -}}
{{- fail "consumer.env.REDIS_HOST is not set, nor REDIS_ADDRS: the consumer would not know which Redis to read" -}}
{{- end -}}
{{- if and .Values.redis.tls.secret (or (hasKey .Values.consumer.env "REDIS_TLS") (hasKey .Values.consumer.env "REDIS_TLS_CA_FILE") (hasKey .Values.consumer.env "REDIS_TLS_CERT_FILE") (hasKey .Values.consumer.env "REDIS_TLS_KEY_FILE")) -}}
{{- fail "redis.tls.secret sets REDIS_TLS and the files: leave them out of consumer.env" -}}
{{- end -}}
{{- if not (include "ottoscaler.logServerAddr" .) -}}
{{- fail "logRelay.env.LOG_SERVER_ADDR is not set, and logServer.enabled is false: the log relay would not know where to send the lines" -}}
{{- end -}}
{{- $relay := .Values.logRelay -}}
{{- if eq (toString (get $relay.env "LOG_SERVER_TLS")) "off" -}}
{{- if or $relay.tls.caSecret.name $relay.tls.certSecret.name (get $relay.env "LOG_SERVER_NAME") -}}
{{- fail "logRelay.env.LOG_SERVER_TLS is off, but logRelay.tls or LOG_SERVER_NAME is set: certificates have no meaning without TLS" -}}
{{- end -}}
{{- if and $relay.tokenSecret.name (ne (toString (get $relay.env "LOG_SERVER_TOKEN_PLAINTEXT")) "true") -}}
{{- fail "logRelay.env.LOG_SERVER_TLS is off, but logRelay.tokenSecret is set: whoever is on the way could read the token (LOG_SERVER_TOKEN_PLAINTEXT: true allows it)" -}}
{{- end -}}
{{- end -}}
{{- if not $relay.rotatedLogs.enabled -}}
{{- if or $relay.rotatedLogs.caSecret.name (get $relay.env "KUBELET_PORT") (get $relay.env "KUBELET_INSECURE") -}}
{{- fail "logRelay.rotatedLogs.enabled is false: its caSecret, KUBELET_PORT and KUBELET_INSECURE have no meaning" -}}
{{- end -}}
{{- else if and $relay.rotatedLogs.caSecret.name (eq (toString (get $relay.env "KUBELET_INSECURE")) "true") -}}
{{- fail "logRelay.rotatedLogs.caSecret is set, but KUBELET_INSECURE takes any certificate" -}}
{{- end -}}
{{- range $key := list "consumer" "scaler" "logRelay" -}}
{{- $drain := get (get $.Values $key).env "DRAIN_TIMEOUT" | default "20s" -}}
{{- if lt (float64 $.Values.terminationGracePeriodSeconds) (include "ottoscaler.seconds" $drain | float64 | addf 20) -}}
{{- fail (printf "terminationGracePeriodSeconds is %v, but %s.env.DRAIN_TIMEOUT is %s, and 20 seconds more are needed: the kubelet would kill the containers in the middle of their last writes" $.Values.terminationGracePeriodSeconds $key $drain) -}}
{{- end -}}
{{- end -}}
{{- if not (get .Values.scaler.env "OTTO_AGENT_IMAGE") -}}
{{- range $name, $pool := .Values.pools -}}
{{- if $pool -}}
{{- $containers := dig "template" "spec" "containers" list $pool -}}
{{- $agent := first $containers | default dict -}}
{{- range $containers -}}{{- if eq (get . "name") "agent" -}}{{- $agent = . -}}{{- end -}}{{- end -}}
{{- if not (get $agent "image") -}}
{{- fail (printf "scaler.env.OTTO_AGENT_IMAGE is not set, and pool %s names no image: its workers would have none" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
