{{/*
The pod template of every workload, of the topics job and of the test: dict "root" "role" "tenant" "values" "args", and
"command" to run something else than eilpost. Only a role has ports and probes.
*/}}
{{- define "eilpost.podSpec" -}}
{{- $isRole := has .role (list "ingress" "router" "delivery" "mailstore") -}}
{{- $values := .root.Values -}}
{{- $client := include "eilpost.kafkaClient" .root | fromJson -}}
{{- /* The shared topics are made without the directory, which a hook would precede. */}}
{{- $hasDirectory := or (ne .role "topics") (ne .tenant "") -}}
{{- if not .values.hook }}
serviceAccountName: {{ include "eilpost.serviceAccountName" .root | include "eilpost.scalar" }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ include "eilpost.scalar" . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- if $isRole }}
terminationGracePeriodSeconds: {{ add (int .values.preStopSeconds) (int .values.drainSeconds) 10 }}
{{- end }}
dnsConfig:
  {{- toYaml $values.dnsConfig | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if and $isRole .values.topologySpread.enabled }}
topologySpreadConstraints:
  {{- $unit := . }}
  {{- range .values.topologySpread.topologyKeys }}
  - maxSkew: {{ $unit.values.topologySpread.maxSkew }}
    topologyKey: {{ include "eilpost.scalar" . }}
    whenUnsatisfiable: {{ $unit.values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "eilpost.selectorLabels" $unit | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
containers:
  - name: eilpost
    image: {{ include "eilpost.image" .root | quote }}
    imagePullPolicy: {{ $values.image.pullPolicy }}
    {{- with .command }}
    command:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    args:
      {{- toYaml .args | nindent 6 }}
    env:
      {{- include "eilpost.env" . | trim | nindent 6 }}
    {{- with .values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- if $isRole }}
    ports:
      {{- if eq .role "ingress" }}
      - name: smtp
        containerPort: 2525
      {{- end }}
      {{- if eq .role "mailstore" }}
      - name: pop3
        containerPort: 2110
      {{- end }}
      - name: http
        containerPort: 8025
    startupProbe:
      httpGet: {path: /healthz, port: http}
      {{- toYaml .values.probes.startup | nindent 6 }}
    livenessProbe:
      httpGet: {path: /healthz, port: http}
      {{- toYaml .values.probes.liveness | nindent 6 }}
    readinessProbe:
      httpGet: {path: /readyz, port: http}
      {{- toYaml .values.probes.readiness | nindent 6 }}
    {{- if int .values.preStopSeconds }}
    lifecycle:
      preStop:
        exec:
          command: [sleep, {{ int .values.preStopSeconds | quote }}]
    {{- end }}
    {{- end }}
    resources:
      {{- toYaml .values.resources | nindent 6 }}
    securityContext:
      allowPrivilegeEscalation: false
      capabilities:
        drop: [ALL]
      readOnlyRootFilesystem: true
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      {{- if $hasDirectory }}
      - name: directory
        mountPath: /etc/eilpost
        readOnly: true
      {{- end }}
      {{- if ne .role "mailstore" }}
      {{- if and $values.log.tls.enabled $values.log.tls.caSecret }}
      - name: kafka-ca
        mountPath: /etc/eilpost-kafka/ca
        readOnly: true
      {{- end }}
      {{- if $client.secret }}
      - name: kafka-client
        mountPath: /etc/eilpost-kafka/client
        readOnly: true
      {{- end }}
      {{- end }}
      {{- if include "eilpost.hasSpoolVolume" . }}
      - name: spool
        mountPath: /var/lib/eilpost/spool
      {{- end }}
      {{- if has .role (list "delivery" "mailstore" "test") }}
      - name: mailboxes
        mountPath: /var/lib/eilpost/mail
      {{- end }}
      {{- with .values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir:
      sizeLimit: 1Gi
  {{- if $hasDirectory }}
  # The whole volume, never a subPath: a subPath is not updated when its source changes.
  - name: directory
    {{- include "eilpost.directoryVolume" .root | nindent 4 }}
  {{- end }}
  {{- if ne .role "mailstore" }}
  {{- if and $values.log.tls.enabled $values.log.tls.caSecret }}
  - name: kafka-ca
    secret:
      secretName: {{ include "eilpost.scalar" $values.log.tls.caSecret }}
      items:
        - key: {{ include "eilpost.scalar" $values.log.tls.caKey }}
          path: ca.crt
  {{- end }}
  {{- if $client.secret }}
  - name: kafka-client
    secret:
      secretName: {{ include "eilpost.scalar" $client.secret }}
      items:
        - key: {{ include "eilpost.scalar" $client.cert }}
          path: tls.crt
        - key: {{ include "eilpost.scalar" $client.key }}
          path: tls.key
  {{- end }}
  {{- end }}
  {{- if include "eilpost.hasSpoolVolume" . }}
  - name: spool
    persistentVolumeClaim:
      claimName: {{ include "eilpost.claimName" (dict "root" .root "name" "spool" "volume" $values.spool.volume) | include "eilpost.scalar" }}
  {{- end }}
  {{- if has .role (list "delivery" "mailstore" "test") }}
  - name: mailboxes
    persistentVolumeClaim:
      claimName: {{ include "eilpost.claimName" (dict "root" .root "name" "mailboxes" "volume" $values.mailboxes) | include "eilpost.scalar" }}
  {{- end }}
  {{- with .values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Not empty when a role reads and writes spooled content on the shared volume. */}}
{{- define "eilpost.hasSpoolVolume" -}}
{{- if and (eq (include "eilpost.spoolKind" .root) "file") (has .role (list "ingress" "router" "delivery" "test")) -}}
true
{{- end -}}
{{- end -}}

{{/* The claim of a volume: the existing one, or the chart's. dict "root" "name" "volume". */}}
{{- define "eilpost.claimName" -}}
{{- .volume.existingClaim | default (printf "%s-%s" (include "eilpost.fullname" .root) .name) -}}
{{- end -}}

{{/* The source of the directory file. */}}
{{- define "eilpost.directoryVolume" -}}
{{- with .Values.directory -}}
{{- if .existingConfigMap -}}
configMap:
  name: {{ include "eilpost.scalar" .existingConfigMap }}
{{- else -}}
secret:
  secretName: {{ .existingSecret | default (printf "%s-directory" (include "eilpost.fullname" $)) | include "eilpost.scalar" }}
{{- end }}
  items:
    - key: {{ ternary "directory.toml" .key (ne .inline "") | include "eilpost.scalar" }}
      path: directory.toml
{{- end -}}
{{- end -}}
