{{/* Names and labels. Every helper takes the root context, or a unit: dict "root" "role" "tenant" "name" "values". */}}

{{- define "eilpost.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* The first part of every object's name; short enough for "-router-TENANT" behind it. */}}
{{- define "eilpost.fullname" -}}
{{- $name := include "eilpost.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The name of a role's objects: FULLNAME-ROLE, and for a dedicated tenant FULLNAME-ROLE-TENANT as a DNS label. */}}
{{- define "eilpost.unitName" -}}
{{- $name := printf "%s-%s" (include "eilpost.fullname" .root) .role -}}
{{- if .tenant -}}
{{- $tenant := .tenant | lower | replace "_" "-" -}}
{{- $whole := printf "%s-%s" $name $tenant -}}
{{- if or (ne $tenant .tenant) (gt (len $whole) 63) (hasSuffix "-" $whole) -}}
{{- $whole = printf "%s-%s" ($whole | trunc 54 | trimAll "-") (sha256sum .tenant | trunc 8) -}}
{{- end -}}
{{- $whole -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "eilpost.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "eilpost.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "eilpost.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/*
A string as a YAML scalar, quoted only where it has to be. For the pod template, whose text is in the name of the topics
Job: a quote too many would rename the Job.
*/}}
{{- define "eilpost.scalar" -}}
{{- ternary . (quote .) (eq . (toYaml .)) -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "eilpost.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "eilpost.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that select the pods of one unit; never changed, a Deployment's selector is immutable. */}}
{{- define "eilpost.selectorLabels" -}}
app.kubernetes.io/name: {{ include "eilpost.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .role }}
eilpost/tenant: {{ .tenant | default "shared" | quote }}
{{- end -}}

{{/* Metadata of an object of one unit: dict "unit" "suffix". */}}
{{- define "eilpost.unitMetadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "eilpost.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .role }}
  eilpost/tenant: {{ .tenant | default "shared" | quote }}
{{- end -}}

{{/* Metadata of an object of the release: dict "root" "name". */}}
{{- define "eilpost.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .namespace | default .root.Release.Namespace | quote }}
labels:
  {{- include "eilpost.labels" .root | nindent 2 }}
{{- end -}}

{{/*
The workloads, as a JSON list of {role, tenant, name, values}: the four roles, then router and delivery of each dedicated
tenant. `values` is `defaults`, overridden by the role's block, overridden by the tenant's.
*/}}
{{- define "eilpost.units" -}}
{{- $units := list -}}
{{- range $role := list "ingress" "router" "delivery" "mailstore" -}}
{{- $values := mergeOverwrite (deepCopy $.Values.defaults) (deepCopy (index $.Values $role)) -}}
{{- if or (ne $role "mailstore") $values.enabled -}}
{{- $name := include "eilpost.unitName" (dict "root" $ "role" $role "tenant" "") -}}
{{- $units = append $units (dict "role" $role "tenant" "" "name" $name "values" $values) -}}
{{- end -}}
{{- end -}}
{{- range $tenant := .Values.tenants -}}
{{- range $role := list "router" "delivery" -}}
{{- $values := mergeOverwrite (deepCopy $.Values.defaults) (deepCopy (index $.Values $role)) (deepCopy (index $tenant $role | default dict)) -}}
{{- $name := include "eilpost.unitName" (dict "root" $ "role" $role "tenant" $tenant.name) -}}
{{- $units = append $units (dict "role" $role "tenant" $tenant.name "name" $name "values" $values) -}}
{{- end -}}
{{- end -}}
{{- toJson $units -}}
{{- end -}}
