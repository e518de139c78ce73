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
