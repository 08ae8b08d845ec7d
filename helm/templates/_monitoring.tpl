{{/* How a pod is scraped: the block of a PodMonitor or ServiceMonitor. The labels are those of the rules and dashboards. */}}
{{- define "eilpost.endpoint" -}}
port: http
path: /metrics
interval: {{ .interval }}
scrapeTimeout: {{ .scrapeTimeout }}
honorLabels: true
relabelings:
  - {sourceLabels: [__meta_kubernetes_namespace], targetLabel: namespace}
  - {sourceLabels: [__meta_kubernetes_pod_name], targetLabel: pod}
  - {sourceLabels: [__meta_kubernetes_pod_label_app_kubernetes_io_component], targetLabel: role}
  - {sourceLabels: [__meta_kubernetes_pod_label_eilpost_tenant], targetLabel: tenant}
{{- end -}}

{{/* The selector of the pods that serve metrics: not the topics job and the test. */}}
{{- define "eilpost.scraped" -}}
matchLabels:
  app.kubernetes.io/name: {{ include "eilpost.name" . | quote }}
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
  eilpost/scrape: "true"
{{- end -}}

{{/*
The groups of files/rules/*.yaml as a JSON list, with the changes of monitoring.rules.alerts, and a group that records which
workloads there should be, for EilpostRoleDown. The alerts in files/thresholds.yaml take another threshold: the number behind
the last comparison, with which their expressions end (a test sees to that).
*/}}
{{- define "eilpost.ruleGroups" -}}
{{- $rules := .Values.monitoring.rules -}}
{{- $groups := list -}}
{{- $known := list -}}
{{- $units := .Files.Get "files/thresholds.yaml" | fromYaml -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" -}}
{{- range $group := ($.Files.Get $path | fromYaml).groups -}}
{{- $kept := list -}}
{{- range $rule := $group.rules -}}
{{- if $rule.alert -}}
{{- $known = append $known $rule.alert -}}
{{- $change := get ($rules.alerts | default dict) $rule.alert | default dict -}}
{{- if ne (toString $change.enabled) "false" -}}
{{- $_ := set $rule "labels" (mergeOverwrite ($rule.labels | default dict) ($rules.alertLabels | default dict) ($change.labels | default dict)) -}}
{{- with $change.for -}}
{{- $_ := set $rule "for" . -}}
{{- end -}}
{{- if hasKey $change "threshold" -}}
{{- $key := printf "monitoring.rules.alerts.%s.threshold" $rule.alert -}}
{{- $unit := get $units $rule.alert -}}
{{- if not $unit -}}
{{- fail (printf "%s: this alert has no threshold to choose; these have one: %s" $key (keys $units | sortAlpha | join ", ")) -}}
{{- else if and (hasPrefix "share" $unit) (gt (float64 $change.threshold) 1.0) -}}
{{- fail (printf "%s: %v is more than all: it is a %s, 0.2 for 20 %%" $key $change.threshold $unit) -}}
{{- end -}}
{{- $threshold := "([<>]=?)\\s*[0-9.]+\\s*$" -}}
{{- $_ := set $rule "expr" (regexReplaceAll $threshold $rule.expr (printf "${1} %v" $change.threshold)) -}}
{{- end -}}
{{- if not (contains "eilpost" (include "eilpost.fullname" $)) -}}
{{- $_ := set $rule "expr" ($rule.expr | replace ".*eilpost.*" (printf ".*eilpost.*|(keda-hpa-)?%s-.+" (include "eilpost.fullname" $))) -}}
{{- end -}}
{{- range $claim := list $.Values.mailboxes.existingClaim $.Values.spool.volume.existingClaim | compact -}}
{{- $_ := set $rule "expr" ($rule.expr | replace "persistentvolumeclaim=~\"" (printf "persistentvolumeclaim=~\"%s|" (replace "." "[.]" $claim))) -}}
{{- end -}}
{{- with dig "annotations" "runbook_url" "" $rule -}}
{{- $_ := set $rule.annotations "runbook_url" (printf "%s%s" ($rules.runbookBaseUrl | default "") .) -}}
{{- end -}}
{{- $kept = append $kept $rule -}}
{{- end -}}
{{- else -}}
{{- $kept = append $kept $rule -}}
{{- end -}}
{{- end -}}
{{- if $kept -}}
{{- $groups = append $groups (set $group "rules" $kept) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $alert, $_ := $rules.alerts -}}
{{- if not (has $alert $known) -}}
{{- fail (printf "monitoring.rules.alerts.%s: there is no such alert: see files/rules" $alert) -}}
{{- end -}}
{{- end -}}
{{- $expected := list -}}
{{- range $unit := include "eilpost.units" . | fromJsonArray -}}
{{- if and (ne $unit.role "ingress") (or $unit.values.replicas $unit.values.autoscaling.enabled $unit.values.keda.enabled) -}}
{{- $labels := dict "namespace" $.Release.Namespace "role" $unit.role "tenant" ($unit.tenant | default "shared") -}}
{{- $expected = append $expected (dict "record" "namespace_tenant_role:eilpost_expected:info" "expr" "vector(1)" "labels" $labels) -}}
{{- end -}}
{{- end -}}
{{- if and $expected (ne (dig "EilpostRoleDown" "enabled" true ($rules.alerts | default dict) | toString) "false") -}}
{{- $groups = append $groups (dict "name" "eilpost.expected" "rules" $expected) -}}
{{- end -}}
{{- toJson $groups -}}
{{- end -}}
