{{- define "redirector.labels" -}}
app.kubernetes.io/name: redirector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "redirector.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
