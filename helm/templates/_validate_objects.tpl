{{/* Faults that otherwise only the API server or the scheduler would find; one line each, as in _validate.tpl. */}}

{{/* The blocks of values that describe pods, as JSON {key: values}, without what they take over from others. */}}
{{- define "eilpost.blocks" -}}
{{- $blocks := dict "topics.job" .Values.topics.job "test" .Values.test }}
{{- range $block := list "defaults" "ingress" "router" "delivery" "mailstore" }}
{{- $_ := set $blocks $block (index $.Values $block) }}
{{- end }}
{{- range $index, $tenant := .Values.tenants }}
{{- range $role := list "router" "delivery" }}
{{- $_ := set $blocks (printf "tenants[%d].%s" $index $role) (index $tenant $role | default dict) }}
{{- end }}
{{- end }}
{{- toJson $blocks }}
{{- end -}}

{{- define "eilpost.faultsOfObjects" -}}
{{- if regexMatch "^[0-9.]+$" (.Values.hostname | default "") }}
hostname: {{ .Values.hostname | quote }} is an IP address: set a name, like mx.example.org
{{- end }}
{{- range $key, $ports := dict "log.bootstrap" (regexFindAll ":[0-9]+" (.Values.log.bootstrap | default "") -1) "delivery.relay" (regexFindAll ":[0-9]+$" (.Values.delivery.relay | default "") -1) }}
{{- range $ports }}
{{- if or (gt (len .) 6) (lt (trimPrefix ":" . | atoi) 1) (gt (trimPrefix ":" . | atoi) 65535) }}
{{ $key }}: {{ trimPrefix ":" . }} is not a port: write one from 1 to 65535
{{- end }}
{{- end }}
{{- end }}
{{- range $key, $size := dict "mailboxes.size" (.Values.mailboxes.size | default "") "spool.volume.size" (.Values.spool.volume.size | default "") }}
{{- if not (regexMatch "^([0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?)?$" $size) }}
{{ $key }}: {{ $size | quote }} is not the size of a volume: write one like 20Gi
{{- end }}
{{- end }}
{{- range $index, $tenant := .Values.tenants }}
{{- range .sourceAddresses }}
{{- if not (or (contains ":" .) (regexMatch "^((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(\\.|$)){4}$" .)) }}
tenants[{{ $index }}].sourceAddresses: {{ . | quote }} is not an IP address: write one like 192.0.2.10
{{- end }}
{{- end }}
{{- end }}
{{- $variables := .Files.Lines "files/variables.txt" }}
{{- $renamed := .Files.Get "files/renamed.yaml" | fromYaml }}
{{- range $block, $values := include "eilpost.blocks" . | fromJson }}
{{- range $kind := list "requests" "limits" }}
{{- range $name, $quantity := index ($values.resources | default dict) $kind | default dict }}
{{- $text := toString $quantity }}
{{- if kindIs "invalid" $quantity }}
{{- else if not (regexMatch "^[0-9]+(\\.[0-9]*)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|[eE][+-]?[0-9]+)?$" $text) }}
{{ $block }}.resources.{{ $kind }}.{{ $name }}: {{ $text | quote }} is not a quantity: write one like 500m for CPU, 512Mi for memory
{{- else if and (eq $name "memory") (regexMatch "^[0-9]{1,6}(\\.[0-9]*)?m?$" $text) }}
{{ $block }}.resources.{{ $kind }}.{{ $name }}: {{ $text | quote }} is a number of bytes, too few for a process: add the unit, like 512Mi
{{- end }}
{{- end }}
{{- end }}
{{- range $index, $variable := $values.extraEnv }}
{{- $new := index $renamed (.name | trimPrefix "EILPOST_" | replace "__" "." | lower) }}
{{- if and (hasPrefix "EILPOST_" .name) $new }}
{{ $block }}.extraEnv[{{ $index }}]: {{ .name }} is now called EILPOST_{{ $new | replace "." "__" | upper }}: rename it
{{- else if and (hasPrefix "EILPOST_" .name) (not (has .name $variables)) }}
{{ $block }}.extraEnv[{{ $index }}]: {{ .name }} is no variable that eilpost reads: write EILPOST_SECTION__KEY as in docs/reference/settings.md, or remove it
{{- end }}
{{- end }}
{{- with $values.podDisruptionBudget }}
{{- if and (ne (toString .enabled) "false") (has (toString .maxUnavailable) (list "0" "0%")) }}
{{ $block }}.podDisruptionBudget.maxUnavailable: with 0 no pod could be evicted and no node drained: set 1, or podDisruptionBudget.enabled to false
{{- end }}
{{- end }}
{{- with dig "keda" "prometheusAddress" "" $values }}
{{- if not (regexMatch "^https?://[^/@\\s]+(/\\S*)?$" .) }}
{{ $block }}.keda.prometheusAddress: {{ regexReplaceAll "//.*@" . "//...@" | quote }} is not the address of a server: write http://HOST:PORT
{{- end }}
{{- end }}
{{- end }}
{{- range include "eilpost.units" . | fromJsonArray }}
{{- $rolling := dig "strategy" "rollingUpdate" dict .values | default dict }}
{{- if and (has (toString $rolling.maxSurge) (list "0" "0%")) (has (toString $rolling.maxUnavailable) (list "0" "0%")) }}
{{ .role }}.strategy.rollingUpdate: maxSurge and maxUnavailable are both 0, so that no pod could be replaced: set maxSurge to 1
{{- end }}
{{- end }}
{{- end -}}
