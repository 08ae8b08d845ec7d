{{/*
Checks that the schema cannot express: each helper prints one line for each fault, "KEY: what is wrong: what to do".
*/}}

{{- define "eilpost.faults" -}}
{{- include "eilpost.faultsOfNames" . }}
{{- include "eilpost.faultsOfBasics" . }}
{{- include "eilpost.faultsOfKafka" . }}
{{- include "eilpost.faultsOfStorage" . }}
{{- include "eilpost.faultsOfSettings" . }}
{{- include "eilpost.faultsOfTenants" . }}
{{- range include "eilpost.units" . | fromJsonArray }}
{{- include "eilpost.faultsOfUnit" (set . "root" $) }}
{{- end }}
{{- include "eilpost.faultsOfObjects" . }}
{{- include "eilpost.faultsOfMonitoring" . }}
{{- end -}}

{{/* Regular expression of a host name with at least one dot. */}}
{{- define "eilpost.fqdn" -}}
^([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$
{{- end -}}

{{/* Names of Services are DNS labels (RFC 1035), and a label that stands twice is taken from either place. */}}
{{- define "eilpost.faultsOfNames" -}}
{{- $full := include "eilpost.fullname" . }}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $full) }}
{{ ternary "nameOverride" "fullnameOverride" (and (not .Values.fullnameOverride) (ne .Values.nameOverride "")) }}: {{ $full | quote }} cannot begin the name of a Service: set lower-case letters, digits and hyphens, a letter first
{{- end }}
{{- $ofPods := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "eilpost/tenant" "eilpost/scrape" }}
{{- $ofAll := concat $ofPods (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") }}
{{- range $key, $_ := .Values.commonLabels }}
{{- if has $key $ofAll }}
commonLabels: {{ $key }} is set by the chart: remove it
{{- end }}
{{- end }}
{{- range $block, $values := include "eilpost.blocks" . | fromJson }}
{{- range $key, $_ := $values.podLabels }}
{{- if has $key $ofPods }}
{{ $block }}.podLabels: {{ $key }} is set by the chart: remove it
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "eilpost.faultsOfBasics" -}}
{{- if not (regexMatch (include "eilpost.fqdn" .) (.Values.hostname | default "")) }}
hostname: {{ .Values.hostname | default "" | quote }} is not a fully qualified host name: set the name by which other servers know this one, like mx.example.org
{{- end }}
{{- with .Values.delivery.relay }}
{{- if not (regexMatch "^(smtp|lmtp)://[^/@\\s]+:[0-9]+$" .) }}
delivery.relay: {{ regexReplaceAll "//.*@" . "//...@" | quote }} is not a relay: write smtp://HOST:PORT or lmtp://HOST:PORT, without a user
{{- end }}
{{- end }}
{{- range $role := list "ingress" "mailstore" }}
{{- with (index $.Values $role).service }}
{{- if and .nodePort (eq .type "ClusterIP") }}
{{ $role }}.service.nodePort: a ClusterIP has no port on the nodes: remove it, or set {{ $role }}.service.type to NodePort
{{- end }}
{{- if and .loadBalancerSourceRanges (ne .type "LoadBalancer") }}
{{ $role }}.service.loadBalancerSourceRanges: has no effect on a {{ .type }}: remove it, or set {{ $role }}.service.type to LoadBalancer
{{- end }}
{{- end }}
{{- end }}
{{- $sources := list }}
{{- range $key := list "inline" "existingConfigMap" "existingSecret" }}
{{- if index $.Values.directory $key }}
{{- $sources = append $sources (printf "directory.%s" $key) }}
{{- end }}
{{- end }}
{{- if not $sources }}
directory: there is no directory file: set one of directory.inline, directory.existingConfigMap and directory.existingSecret
{{- else if gt (len $sources) 1 }}
{{ join ", " $sources }}: two sources of one file: set only one of them
{{- end }}
{{- end -}}

{{- define "eilpost.faultsOfKafka" -}}
{{- with .Values.log }}
{{- if not .bootstrap }}
log.bootstrap: there is no Kafka address: set the brokers, like kafka-bootstrap.kafka.svc.cluster.local:9092
{{- else if not (regexMatch "^[A-Za-z0-9._-]+:[0-9]+(,[A-Za-z0-9._-]+:[0-9]+)*$" .bootstrap) }}
log.bootstrap: {{ .bootstrap | quote }} is not a list of brokers: write HOST:PORT,HOST:PORT without spaces and without kafka://
{{- end }}
{{- if and (eq .durability "safe") (lt (int .replication) 3) (ne $.Values.topics.mode "none") }}
log.replication: {{ .replication }} can lose mail with a lost broker: set 3, or for trials log.durability: dev
{{- end }}
{{- if and .sasl.mechanism (not .sasl.username) }}
log.sasl.username: log.sasl.mechanism needs a name to log in with: set it
{{- end }}
{{- if and .sasl.mechanism (not (include "eilpost.saslSecret" $)) }}
log.sasl.existingSecret: log.sasl.mechanism needs a password: create a Secret with the key {{ .sasl.passwordKey }} and name it here
{{- end }}
{{- if and .sasl.existingSecret (not .sasl.mechanism) }}
log.sasl.mechanism: log.sasl.existingSecret is set and no mechanism: set PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
{{- end }}
{{- if and .sasl.username (not .sasl.mechanism) }}
log.sasl.mechanism: log.sasl.username is set and no mechanism, so no pod would log in: set PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, or remove the name
{{- end }}
{{- range $key := list "caSecret" "clientSecret" }}
{{- if and (index $.Values.log.tls $key) (not $.Values.log.tls.enabled) }}
log.tls.enabled: log.tls.{{ $key }} is set and TLS is off: set it to true, or remove log.tls.{{ $key }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.certificates.kafkaClient }}
{{- if .enabled }}
{{- if not $.Values.log.tls.enabled }}
log.tls.enabled: certificates.kafkaClient.enabled is set and TLS is off: set it to true
{{- end }}
{{- if not .issuerName }}
certificates.kafkaClient.issuerName: no issuer: name an Issuer or ClusterIssuer of cert-manager
{{- end }}
{{- if $.Values.log.tls.clientSecret }}
log.tls.clientSecret, certificates.kafkaClient.enabled: two client certificates: set only one of them
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.topics }}
{{- if and (eq .mode "strimzi") (not .strimzi.cluster) }}
topics.strimzi.cluster: topics.mode is strimzi: set the name of the Kafka resource
{{- end }}
{{- if and .strimzi.user.create (ne .mode "strimzi") }}
topics.strimzi.user.create: topics.mode is {{ .mode }}: set topics.mode to strimzi, or remove it
{{- end }}
{{- if and .strimzi.user.create .strimzi.namespace (ne .strimzi.namespace $.Release.Namespace) }}
topics.strimzi.user.create: its Secret would be in namespace {{ .strimzi.namespace }}, and the pods are in {{ $.Release.Namespace }}: create the KafkaUser yourself and copy its Secret
{{- end }}
{{- if and .strimzi.user.create .strimzi.user.acls (not $.Values.log.prefix) }}
topics.strimzi.user.acls: log.prefix is empty, and ACLs need one: set log.prefix, or topics.strimzi.user.acls to false
{{- end }}
{{- if and .strimzi.user.create (eq .mode "strimzi") }}
{{- $name := include "eilpost.fullname" $ }}
{{- $sasl := $.Values.log.sasl }}
{{- if and (eq .strimzi.user.authentication "tls") (not $.Values.log.tls.enabled) }}
log.tls.enabled: the KafkaUser of topics.strimzi.user logs in by a certificate: set it to true
{{- end }}
{{- if and (eq .strimzi.user.authentication "scram-sha-512") (or (ne $sasl.mechanism "SCRAM-SHA-512") (ne $sasl.username $name)) }}
log.sasl: topics.strimzi.user creates the user {{ $name }}: set log.sasl.mechanism to SCRAM-SHA-512 and log.sasl.username to {{ $name }}
{{- end }}
{{- end }}
{{- if and (eq .mode "job") .job.hook }}
{{- if $.Values.certificates.kafkaClient.enabled }}
topics.job.hook: a hook runs before the certificate is requested: set it to false, or use log.tls.clientSecret
{{- end }}
{{- if and $.Values.tenants $.Values.directory.inline }}
topics.job.hook: a hook runs before the directory is created, which names the tenants: set it to false, or use directory.existingSecret
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "eilpost.faultsOfStorage" -}}
{{- range $key, $volume := dict "mailboxes" .Values.mailboxes "spool.volume" .Values.spool.volume }}
{{- if hasKey ($volume.annotations | default dict) "helm.sh/resource-policy" }}
{{ $key }}.annotations: helm.sh/resource-policy is set by the chart, so that `helm uninstall` does not remove mail: remove it
{{- end }}
{{- end }}
{{- with .Values.mailboxes }}
{{- if and .existingClaim .size }}
mailboxes.existingClaim, mailboxes.size: an existing claim has its size: set only one of them
{{- else if not (or .existingClaim .size) }}
mailboxes: delivery and mailstore have no volume for mailboxes: set mailboxes.existingClaim, or mailboxes.size for a new claim
{{- end }}
{{- if not (or (has "ReadWriteMany" .accessModes) (has "ReadWriteOnce" .accessModes) (has "ReadWriteOncePod" .accessModes)) }}
mailboxes.accessModes: with {{ join ", " .accessModes | default "none" }} no pod can write, and delivery stores mail: use ReadWriteMany
{{- end }}
{{- if has "ReadWriteOncePod" .accessModes }}
mailboxes.accessModes: ReadWriteOncePod gives the volume to one pod, and every delivery process writes it: use ReadWriteMany
{{- end }}
{{- end }}
{{- with .Values.spool }}
{{- if .url }}
{{- if not (regexMatch "^(s3|gs|az)://[^/]" .url) }}
spool.url: {{ .url | quote }} is not an object store: write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, or use spool.volume
{{- end }}
{{- if or .volume.existingClaim .volume.size }}
spool.url, spool.volume: two places for large content: set only one of them
{{- end }}
{{- if and .endpoint (not (regexMatch "^https?://[A-Za-z0-9.:_\\[\\]-]+(/[A-Za-z0-9._/-]*)?$" .endpoint)) }}
spool.endpoint: {{ regexReplaceAll "//.*@" .endpoint "//...@" | quote }} is not the address of a server: write https://HOST:PORT, without a user or a query
{{- else if and (hasPrefix "http://" .endpoint) (not .allowHttp) }}
spool.endpoint: {{ .endpoint | quote }} is not encrypted: use https://, or set spool.allowHttp to true
{{- end }}
{{- else }}
{{- if and .volume.existingClaim .volume.size }}
spool.volume.existingClaim, spool.volume.size: an existing claim has its size: set only one of them
{{- else if not (or .volume.existingClaim .volume.size) }}
spool: there is no storage for large content that all pods share: set spool.url to an object store, or spool.volume.size for a ReadWriteMany claim
{{- end }}
{{- range $key := list "endpoint" "region" "existingSecret" }}
{{- if index $.Values.spool $key }}
spool.url: spool.{{ $key }} is set and no bucket: set s3://BUCKET/PREFIX, or remove spool.{{ $key }}
{{- end }}
{{- end }}
{{- if not (or (has "ReadWriteMany" .volume.accessModes) (has "ReadWriteOnce" .volume.accessModes) (has "ReadWriteOncePod" .volume.accessModes)) }}
spool.volume.accessModes: with {{ join ", " .volume.accessModes | default "none" }} no pod can write, and ingress stores large content: use ReadWriteMany
{{- end }}
{{- if has "ReadWriteOncePod" .volume.accessModes }}
spool.volume.accessModes: ReadWriteOncePod gives the volume to one pod, and ingress, router and delivery share it: use ReadWriteMany
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Settings that have a value of their own, by what to use instead. */}}
{{- define "eilpost.reservedSettings" -}}
node.hostname: hostname
node.drain_timeout: drainSeconds of the workload
log.url: log.bootstrap
log.prefix: log.prefix
log.shards: log.shards
log.delivery_shards: log.deliveryShards
log.durability: log.durability
log.replication: log.replication
log.sasl_mechanism: log.sasl.mechanism
log.sasl_username: log.sasl.username
log.sasl_password: log.sasl.existingSecret
log.tls: log.tls.enabled
log.tls_ca: log.tls.caSecret
log.tls_cert: log.tls.clientSecret
log.tls_key: log.tls.clientSecret
spool.url: spool.url
spool.endpoint: spool.endpoint
spool.region: spool.region
spool.allow_http: spool.allowHttp
spool.access_key: spool.existingSecret
spool.secret_key: spool.existingSecret
directory.url: directory.existingSecret
mailboxes.url: mailboxes.existingClaim
ingress.smtp_listen: ingress.service
mailstore.pop3_listen: mailstore.service
http.listen: monitoring
delivery.relay: delivery.relay
delivery.source_addresses: tenants[].sourceAddresses of a dedicated tenant
{{- end -}}

{{- define "eilpost.faultsOfSettings" -}}
{{- $places := dict "settings" (.Values.settings | default dict) }}
{{- range $block := list "defaults" "ingress" "router" "delivery" "mailstore" }}
{{- $_ := set $places (printf "%s.settings" $block) ((index $.Values $block).settings | default dict) }}
{{- end }}
{{- range $index, $tenant := .Values.tenants }}
{{- range $role := list "router" "delivery" }}
{{- $_ := set $places (printf "tenants[%d].%s.settings" $index $role) (dig $role "settings" dict $tenant) }}
{{- end }}
{{- end }}
{{- $reserved := include "eilpost.reservedSettings" . | fromYaml }}
{{- $renamed := .Files.Get "files/renamed.yaml" | fromYaml }}
{{- range $place, $sections := $places }}
{{- range (dig "ingress" "relay_networks" list $sections) }}
{{- if regexMatch (ternary "/0*([0-9]|1[0-5])$" "/0*([0-7]|(0|128|192|224|240|248|252|254)(\\.0+){3})$" (contains ":" .)) . | and (not (regexMatch "(?i)^(fc[0:]*/7|fe80[0:]*/10)$" .)) }}
{{ $place }}.ingress.relay_networks: {{ . }} makes an open relay, as too large a part of the Internet could send to every domain: name only your own networks, at least /8 (IPv4) or /16 (IPv6)
{{- end }}
{{- end }}
{{- with dig "delivery" "ehlo_name" "" $sections }}
{{- if not (regexMatch (include "eilpost.fqdn" $) .) }}
{{ $place }}.delivery.ehlo_name: {{ . | quote }} is not a fully qualified host name: write one like out.example.org
{{- end }}
{{- end }}
{{- range $section, $keys := $sections }}
{{- range $key, $_ := $keys }}
{{- $name := printf "%s.%s" $section $key }}
{{- $new := index $renamed $name }}
{{- $instead := index $reserved ($new | default $name) }}
{{- if $instead }}
{{ $place }}.{{ $name }}: cannot be set here: use {{ $instead }}
{{- else if $new }}
{{ $place }}.{{ $name }}: is now called {{ $new }}: rename it
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "eilpost.faultsOfTenants" -}}
{{- $seen := list }}
{{- $topicsOf := dict }}
{{- range $index, $tenant := .Values.tenants }}
{{- if eq .name "shared" }}
tenants[{{ $index }}].name: shared is the label of the pods that serve all other tenants: rename the tenant
{{- end }}
{{- if has .name $seen }}
tenants[{{ $index }}].name: {{ .name }} is listed twice: remove one of them
{{- end }}
{{- $seen = append $seen .name }}
{{- $lowered := .name | lower | replace "_" "-" }}
{{- $other := get $topicsOf $lowered | default .name }}
{{- if and (eq $.Values.topics.mode "strimzi") (ne $other .name) }}
tenants[{{ $index }}].name: the KafkaTopics of {{ .name }} and {{ $other }} would have the same names: rename one of the tenants, or use another topics.mode
{{- end }}
{{- $_ := set $topicsOf $lowered .name }}
{{- if and .ehloName (not (regexMatch (include "eilpost.fqdn" $) .ehloName)) }}
tenants[{{ $index }}].ehloName: {{ .ehloName | quote }} is not a fully qualified host name: write one like out.example.org
{{- end }}
{{- with $.Values.directory.inline }}
{{- $table := printf "(?m)^\\s*\\[\\s*tenants\\s*\\.\\s*[\"']?%s[\"']?\\s*\\]" $tenant.name }}
{{- if not (regexMatch $table .) }}
tenants[{{ $index }}].name: directory.inline has no [tenants.{{ $tenant.name }}]: add it, with hosting = "dedicated"
{{- else if not (regexMatch (printf "%s[^\\n]*\\n([ \\t]*([^\\[ \\t\\n][^\\n]*)?\\n)*?[ \\t]*hosting\\s*=\\s*[\"']dedicated[\"']" $table) .) }}
tenants[{{ $index }}].name: [tenants.{{ $tenant.name }}] in directory.inline is not of a dedicated tenant: add hosting = "dedicated" to it
{{- end }}
{{- end }}
{{- if and (eq $.Values.topics.mode "job") (or .shards .deliveryShards) }}
tenants[{{ $index }}].shards, tenants[{{ $index }}].deliveryShards: the topics Job makes 12 partitions for a tenant: remove them, or use topics.mode strimzi
{{- end }}
{{- end }}
{{- end -}}

{{/* Partitions that the pods of a unit share; empty for roles without. */}}
{{- define "eilpost.partitions" -}}
{{- $key := get (dict "router" "shards" "delivery" "deliveryShards") .role -}}
{{- if $key -}}
{{- if .tenant -}}
{{- $unit := . -}}
{{- range .root.Values.tenants -}}
{{- if eq .name $unit.tenant -}}
{{- index . $key | default 12 -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- index .root.Values.log $key -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "eilpost.faultsOfUnit" -}}
{{- $unit := . }}
{{- $block := .role }}
{{- range $index, $tenant := .root.Values.tenants }}
{{- if eq .name $unit.tenant }}
{{- $block = printf "tenants[%d].%s" $index $unit.role }}
{{- end }}
{{- end }}
{{- $partitions := include "eilpost.partitions" . }}
{{- with .values }}
{{- if and .autoscaling.enabled .keda.enabled }}
{{ $block }}.autoscaling.enabled, {{ $block }}.keda.enabled: two autoscalers would scale the same Deployment: set only one of them
{{- end }}
{{- if and .autoscaling.enabled (not (or (dig "cpu" "" (.resources.requests | default dict)) (dig "cpu" "" (.resources.limits | default dict)))) }}
{{ $block }}.resources.requests.cpu: the autoscaler compares the use of CPU with it, and there is none: set it, like 200m
{{- end }}
{{- if and .keda.enabled (not $partitions) }}
{{- if and $unit.root.Values.defaults.keda.enabled (not (dig "keda" "enabled" false (index $unit.root.Values $unit.role))) }}
defaults.keda.enabled: {{ $unit.role }} has no queue that KEDA can watch: set router.keda.enabled and delivery.keda.enabled instead
{{- else }}
{{ $block }}.keda.enabled: {{ $unit.role }} has no queue that KEDA can watch: use {{ $block }}.autoscaling
{{- end }}
{{- end }}
{{- $most := dict "replicas" .replicas }}
{{- range $key := list "autoscaling" "keda" }}
{{- with index $unit.values $key }}
{{- if .enabled }}
{{- $most = dict (printf "%s.maxReplicas" $key) .maxReplicas }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{ $block }}.{{ $key }}.minReplicas: {{ .minReplicas }} is more than maxReplicas, {{ .maxReplicas }}: lower it
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if $partitions }}
{{- range $key, $value := $most }}
{{- if gt (int $value) (int $partitions) }}
{{- $name := ternary "log.shards" "log.deliveryShards" (eq $unit.role "router") }}
{{- if $unit.tenant }}
{{- $name = "the partitions of a tenant's topics" }}
{{- end }}
{{ $block }}.{{ $key }}: {{ $value }} is more than {{ $name }}, {{ $partitions }}, and pods beyond that number get no partition: lower it
{{- end }}
{{- end }}
{{- end }}
{{- if and .keda.enabled (eq $unit.role "delivery") (not .keda.prometheusAddress) }}
{{ $block }}.keda.prometheusAddress: KEDA asks Prometheus for the runnable recipients: set its address, like http://prometheus.monitoring.svc:9090
{{- end }}
{{- $own := list }}
{{- range include "eilpost.env" (dict "root" $unit.root "role" $unit.role "tenant" $unit.tenant "values" (omit . "extraEnv")) | fromYamlArray }}
{{- $own = append $own .name }}
{{- end }}
{{- range $index, $variable := .extraEnv }}
{{- if has (upper .name) $own }}
{{ $block }}.extraEnv[{{ $index }}]: {{ .name }} is set by the chart: remove it, and use the value that it follows from
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "eilpost.faultsOfMonitoring" -}}
{{- with .Values.monitoring }}
{{- if and .podMonitor.enabled .serviceMonitor.enabled }}
monitoring.podMonitor.enabled, monitoring.serviceMonitor.enabled: every pod would be scraped twice: set only one of them
{{- end }}
{{- range $key := list "podMonitor" "serviceMonitor" }}
{{- with index $.Values.monitoring $key }}
{{- if and .enabled (gt (include "eilpost.milliseconds" .scrapeTimeout | int) (include "eilpost.milliseconds" .interval | int)) }}
monitoring.{{ $key }}.scrapeTimeout: {{ .scrapeTimeout }} is longer than the interval, {{ .interval }}, and Prometheus would not scrape: lower it
{{- end }}
{{- end }}
{{- end }}
{{- if and (or .podMonitor.enabled .serviceMonitor.enabled) $.Values.networkPolicy.enabled (not $.Values.networkPolicy.metricsNamespace) }}
networkPolicy.metricsNamespace: no namespace may read the metrics: set that of Prometheus
{{- end }}
{{- if or .rules.alerts .rules.alertLabels }}
{{- if not .rules.enabled }}
monitoring.rules.enabled: alerts are changed and not created: set it to true
{{- end }}
{{- end }}
{{- end }}
{{- end -}}
