{{/* Triggers of KEDA 2.17 or newer (`fallback.behavior`), for a unit. */}}

{{/* Records of `accepted` that the routers have not consumed. */}}
{{- define "eilpost.routerTrigger" -}}
{{- $log := .root.Values.log -}}
{{- $prefix := ternary (printf "%s%s." $log.prefix .tenant) $log.prefix (ne .tenant "") -}}
- type: kafka
  metadata:
    bootstrapServers: {{ $log.bootstrap | quote }}
    consumerGroup: {{ printf "%srouter" $prefix | quote }}
    topic: {{ printf "%saccepted" $prefix | quote }}
    lagThreshold: {{ .values.keda.threshold | quote }}
    offsetResetPolicy: earliest
    {{- with $log.sasl.mechanism }}
    sasl: {{ get (dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512") . }}
    {{- end }}
    {{- if $log.tls.enabled }}
    tls: enable
    {{- end }}
  {{- if include "eilpost.kafkaParameters" .root }}
  authenticationRef:
    name: {{ .name | quote }}
  {{- end }}
{{- end -}}

{{/* Recipients that could be tried now, of all routers of this tenant in the namespace, whatever their release. No answer
is a fault, and not zero. */}}
{{- define "eilpost.deliveryTrigger" -}}
- type: prometheus
  metadata:
    serverAddress: {{ .values.keda.prometheusAddress | quote }}
    query: {{ printf "sum(eilpost_queue_runnable_recipients{namespace=\"%s\",tenant=\"%s\"})" .root.Release.Namespace (default "shared" .tenant) | quote }}
    threshold: {{ .values.keda.threshold | quote }}
    ignoreNullValues: "false"
{{- end -}}

{{/* Parameters of the Kafka trigger that come from the routers' environment and Secrets; empty: none. */}}
{{- define "eilpost.kafkaParameters" -}}
{{- $client := include "eilpost.kafkaClient" . | fromJson }}
{{- with .Values.log }}
{{- if .sasl.mechanism }}
env:
  - parameter: username
    name: EILPOST_LOG__SASL_USERNAME
  - parameter: password
    name: EILPOST_LOG__SASL_PASSWORD
{{- end }}
{{- if and .tls.enabled (or .tls.caSecret $client.secret) }}
secretTargetRef:
  {{- if .tls.caSecret }}
  - parameter: ca
    name: {{ .tls.caSecret | quote }}
    key: {{ .tls.caKey | quote }}
  {{- end }}
  {{- if $client.secret }}
  - parameter: cert
    name: {{ $client.secret | quote }}
    key: {{ $client.cert | quote }}
  - parameter: key
    name: {{ $client.secret | quote }}
    key: {{ $client.key | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end -}}
