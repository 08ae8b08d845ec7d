{{/* The egress rules of a role, as a YAML list: dict "root" "role". A list of peers that is empty means anywhere. */}}
{{- define "eilpost.egress" -}}
{{- $values := .root.Values -}}
{{- $policy := $values.networkPolicy -}}
- to: {{ toJson $policy.dnsTo }}
  ports:
    {{- range $policy.dnsPorts }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- if ne .role "mailstore" }}
- to: {{ toJson $policy.kafkaTo }}
  ports:
    {{- range $policy.kafkaPorts | default (regexFindAll "[0-9]+(,|$)" $values.log.bootstrap -1) }}
    - {port: {{ trimSuffix "," (toString .) }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- if and $values.spool.url (has .role (list "ingress" "router" "delivery" "test")) }}
- to: {{ toJson $policy.objectsTo }}
  ports:
    {{- $authority := regexFind "^https?://[^/]*" ($values.spool.endpoint | default "") }}
    {{- $port := regexFind ":[0-9]+$" $authority | trimPrefix ":" | default (ternary "80" "443" (hasPrefix "http://" $authority)) }}
    - {port: {{ $policy.objectsPort | default $port }}, protocol: TCP}
{{- end }}
{{- if eq .role "delivery" }}
- ports:
    {{- $relay := regexFind "[0-9]+$" ($values.delivery.relay | default "") }}
    {{- range concat $policy.deliveryPorts (ternary (list $relay) list (ne $relay "")) | uniq }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- if eq .role "test" }}
- to:
    - podSelector:
        matchLabels:
          app.kubernetes.io/name: {{ include "eilpost.name" .root | quote }}
          app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
          app.kubernetes.io/component: ingress
  ports: [{port: 2525, protocol: TCP}]
{{- end }}
{{- with $policy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
