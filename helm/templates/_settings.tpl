{{/* Settings of eilpost as environment variables. A unit is dict "root" "role" "tenant" "values". */}}

{{/* "file" when content lies on a volume, "objects" when in an object store. */}}
{{- define "eilpost.spoolKind" -}}
{{- ternary "objects" "file" (not (empty .Values.spool.url)) -}}
{{- end -}}

{{/*
The client certificate for Kafka, as JSON {secret, cert, key}: from cert-manager, from the KafkaUser that the chart
creates, or from the Secret that is named. `secret` is empty where there is none.
*/}}
{{- define "eilpost.kafkaClient" -}}
{{- $tls := .Values.log.tls -}}
{{- $user := .Values.topics.strimzi.user -}}
{{- if not $tls.enabled -}}
{{- toJson (dict "secret" "") -}}
{{- else if .Values.certificates.kafkaClient.enabled -}}
{{- toJson (dict "secret" (printf "%s-kafka-client" (include "eilpost.fullname" .)) "cert" "tls.crt" "key" "tls.key") -}}
{{- else if and $user.create (eq $user.authentication "tls") (not $tls.clientSecret) -}}
{{- toJson (dict "secret" (include "eilpost.fullname" .) "cert" "user.crt" "key" "user.key") -}}
{{- else -}}
{{- toJson (dict "secret" $tls.clientSecret "cert" $tls.certKey "key" $tls.keyKey) -}}
{{- end -}}
{{- end -}}

{{/* Settings that follow from other values, as JSON {section: {key: value}}; they cannot be given in `settings`. */}}
{{- define "eilpost.derivedSettings" -}}
{{- $values := .root.Values -}}
{{- $log := dict "url" (printf "kafka://%s" $values.log.bootstrap) "prefix" $values.log.prefix "durability" $values.log.durability "replication" $values.log.replication "shards" $values.log.shards -}}
{{- if eq .role "topics" -}}
{{- $_ := set $log "delivery_shards" $values.log.deliveryShards -}}
{{- end -}}
{{- with $values.log.sasl -}}
{{- if .mechanism -}}
{{- $_ := set $log "sasl_mechanism" .mechanism -}}
{{- $_ := set $log "sasl_username" .username -}}
{{- end -}}
{{- end -}}
{{- if $values.log.tls.enabled -}}
{{- $_ := set $log "tls" true -}}
{{- if $values.log.tls.caSecret -}}
{{- $_ := set $log "tls_ca" "/etc/eilpost-kafka/ca/ca.crt" -}}
{{- end -}}
{{- if (include "eilpost.kafkaClient" .root | fromJson).secret -}}
{{- $_ := set $log "tls_cert" "/etc/eilpost-kafka/client/tls.crt" -}}
{{- $_ := set $log "tls_key" "/etc/eilpost-kafka/client/tls.key" -}}
{{- end -}}
{{- end -}}
{{- $spool := dict "url" "file:/var/lib/eilpost/spool" -}}
{{- if eq (include "eilpost.spoolKind" .root) "objects" -}}
{{- $spool = dict "url" $values.spool.url "endpoint" ($values.spool.endpoint | default "") "region" ($values.spool.region | default "") "allow_http" $values.spool.allowHttp -}}
{{- end -}}
{{- $delivery := dict -}}
{{- if has .role (list "router" "delivery" "test") -}}
{{- $_ := set $delivery "relay" ($values.delivery.relay | default "") -}}
{{- end -}}
{{- $unit := . -}}
{{- range $values.tenants -}}
{{- if and (eq .name $unit.tenant) (eq $unit.role "delivery") -}}
{{- if .sourceAddresses -}}
{{- $_ := set $delivery "source_addresses" .sourceAddresses -}}
{{- end -}}
{{- if .ehloName -}}
{{- $_ := set $delivery "ehlo_name" .ehloName -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $any := ternary "[::]" "0.0.0.0" (eq $values.ipFamily "IPv6") -}}
{{- $settings := dict
  "node" (dict "hostname" $values.hostname "drain_timeout" (printf "%ds" (int .values.drainSeconds)))
  "log" $log
  "spool" $spool
  "directory" (dict "url" "file:/etc/eilpost/directory.toml")
  "http" (dict "listen" (printf "%s:8025" $any))
  "ingress" (dict "smtp_listen" (printf "%s:2525" $any))
  "delivery" $delivery
  "mailstore" (dict "pop3_listen" (printf "%s:2110" $any)) -}}
{{- if eq .role "mailstore" -}}
{{- /* It uses no log, and gets no password for one. */}}
{{- $_ := unset $settings "log" -}}
{{- end -}}
{{- if has .role (list "delivery" "mailstore" "test") -}}
{{- $_ := set $settings "mailboxes" (dict "url" "maildir:/var/lib/eilpost/mail") -}}
{{- else if has .role (list "ingress" "router") -}}
{{- /* They have no volume of mailboxes: `eilpost doctor` does not look for one. */}}
{{- $_ := set $settings "mailboxes" (dict "url" "memory:") -}}
{{- end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* All settings of a unit as entries of `env`, sorted. */}}
{{- define "eilpost.env" -}}
{{- $given := mergeOverwrite (dict "node" (dict "log_format" "json")) (deepCopy (.root.Values.settings | default dict)) (deepCopy (.values.settings | default dict)) -}}
{{- $all := mergeOverwrite $given (include "eilpost.derivedSettings" . | fromJson) -}}
{{- range $section, $keys := $all }}
{{- range $key, $value := $keys }}
- name: EILPOST_{{ upper $section }}__{{ upper $key }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- if ne .role "mailstore" }}
{{- with .root.Values.log.sasl }}
{{- if .mechanism }}
- name: EILPOST_LOG__SASL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ include "eilpost.saslSecret" $.root | include "eilpost.scalar" }}
      key: {{ include "eilpost.scalar" .passwordKey }}
{{- end }}
{{- end }}
{{- end }}
{{- if has .role (list "ingress" "router" "delivery" "test") }}
{{- with .root.Values.spool }}
{{- if .existingSecret }}
- name: EILPOST_SPOOL__ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "eilpost.scalar" .existingSecret }}
      key: {{ include "eilpost.scalar" .accessKeyKey }}
- name: EILPOST_SPOOL__SECRET_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "eilpost.scalar" .existingSecret }}
      key: {{ include "eilpost.scalar" .secretKeyKey }}
{{- end }}
{{- end }}
{{- end }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The Secret with the password for Kafka: the one that is named, or that of the KafkaUser which the chart creates. */}}
{{- define "eilpost.saslSecret" -}}
{{- $strimzi := .Values.topics.strimzi.user -}}
{{- $ofUser := and $strimzi.create (eq $strimzi.authentication "scram-sha-512") -}}
{{- .Values.log.sasl.existingSecret | default (ternary (include "eilpost.fullname" .) "" $ofUser) -}}
{{- end -}}
