{{- define "buildrunner.name" -}}
{{- if eq .Release.Name .Chart.Name }}{{ .Chart.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "buildrunner.selector" -}}
app.kubernetes.io/name: buildrunner
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "buildrunner.labels" -}}
{{ include "buildrunner.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "buildrunner.hasPostgres" -}}
{{- if or .Values.database.url .Values.database.existingSecret }}true{{ end }}
{{- end }}

{{- define "buildrunner.check" -}}
{{- if and (gt (int .Values.replicas) 1) (not (include "buildrunner.hasPostgres" .)) }}
{{- fail "several servers need PostgreSQL: set database.url or database.existingSecret, or replicas=1" }}
{{- end }}
{{- end }}

{{- /* The settings of the server: `settings`, then a table for each of `pools`. */}}
{{- define "buildrunner.settings" -}}
{{- .Values.settings }}
{{- range $name, $pool := .Values.pools }}
{{- $images := dict "worker_image" (printf "%s:%s" $.Values.workers.image.repository $.Values.workers.image.tag) "engine_image" (printf "%s:%s" $.Values.workers.engine.repository $.Values.workers.engine.tag) }}
{{- $place := dict "server" (include "buildrunner.internalUrl" $) "namespace" $.Release.Namespace "owner" (printf "%s-pools" (include "buildrunner.name" $)) }}
{{- $defaults := merge $images $place }}
{{- with $.Values.imagePullSecrets }}{{- $_ := set $defaults "pull_secrets" . }}{{- end }}
[pools.{{ $name }}]
{{- range $key, $value := merge (deepCopy ($pool | default dict)) $defaults }}
{{- if kindIs "map" $value }}
{{- $pairs := list }}
{{- range $inner, $text := $value }}{{- $pairs = append $pairs (printf "%s = %s" (toJson $inner) (toJson $text)) }}{{- end }}
{{ $key }} = { {{ join ", " $pairs }} }
{{- else if or (kindIs "string" $value) (kindIs "slice" $value) }}
{{ $key }} = {{ toJson $value }}
{{- else }}
{{ $key }} = {{ int $value }}
{{- end }}
{{- end }}
{{ end }}
{{- end }}

{{- define "buildrunner.internalUrl" -}}
{{ .Values.workers.serverUrl | default (printf "http://%s.%s.svc:%d" (include "buildrunner.name" .) .Release.Namespace (int .Values.service.port)) }}
{{- end }}
