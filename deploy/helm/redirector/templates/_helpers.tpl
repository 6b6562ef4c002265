{{- define "redirector.labels" -}}
app.kubernetes.io/name: redirector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "redirector.http" -}}
{{- $address := .Values.http.address | trimPrefix "[" | trimSuffix "]" -}}
{{- if contains ":" $address }}[{{ $address }}]{{ else }}{{ $address }}{{ end }}:{{ .Values.http.port }}
{{- end }}
{{- define "redirector.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
