{{/*
The topics as `eilpost topics create` makes them (mail/log/kafka/topics.py; a test compares), as a JSON list of
{name, partitions, replicas, config}: dict "root" "prefix" "shards" "deliveryShards".
*/}}
{{- define "eilpost.topics" -}}
{{- $log := .root.Values.log -}}
{{- $given := dig "log" dict (.root.Values.settings | default dict) -}}
{{- $common := dict
  "min.insync.replicas" (ternary "2" "1" (ge (int $log.replication) 3))
  "unclean.leader.election.enable" "false"
  "message.timestamp.type" "LogAppendTime"
  "max.message.bytes" "16777216"
  "compression.type" "producer" -}}
{{- $purged := dict "cleanup.policy" "delete" "retention.ms" "-1" "retention.bytes" "-1" "segment.bytes" "33554432" -}}
{{- $compacted := dict
  "cleanup.policy" "compact"
  "min.cleanable.dirty.ratio" "0.1"
  "segment.bytes" "33554432"
  "segment.ms" "3600000"
  "delete.retention.ms" "3600000"
  "max.compaction.lag.ms" "86400000" -}}
{{- $aged := dict
  "cleanup.policy" "delete"
  "retention.ms" (include "eilpost.milliseconds" (default "7d" $given.events_retention))
  "retention.bytes" "-1" -}}
{{- $topics := list -}}
{{- $part := . -}}
{{- range $name, $config := dict "accepted" $purged "queue" $compacted "dispatched" $purged "attempted" $purged "events" $aged -}}
{{- $partitions := ternary $part.deliveryShards $part.shards (eq $name "dispatched") -}}
{{- $topic := dict "name" (printf "%s%s" $part.prefix $name) "partitions" $partitions "replicas" $log.replication "config" (merge (dict) $config $common) -}}
{{- $topics = append $topics $topic -}}
{{- end -}}
{{- toJson $topics -}}
{{- end -}}

{{/* A time with its unit, as eilpost takes it, in milliseconds. */}}
{{- define "eilpost.milliseconds" -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $factor := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 "w" 604800000) $unit -}}
{{- mulf (float64 (trimSuffix $unit .)) $factor | int64 -}}
{{- end -}}
