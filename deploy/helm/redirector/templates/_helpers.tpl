{{- define "redirector.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- define "redirector.fullname" -}}
{{- $name := include "redirector.name" . }}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}
{{/* They select pods, and never change. */}}
{{- define "redirector.selectorLabels" -}}
app.kubernetes.io/name: {{ include "redirector.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "redirector.labels" -}}
{{ include "redirector.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- define "redirector.http" -}}
{{- $address := .Values.http.address | trimPrefix "[" | trimSuffix "]" -}}
{{- if contains ":" $address }}[{{ $address }}]{{ else }}{{ $address }}{{ end }}:{{ .Values.http.port }}
{{- end }}
{{- define "redirector.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}
{{/* What platforms have elsewhere. */}}
{{- define "redirector.platform" -}}
gke: {binDir: /home/kubernetes/bin}
k3s: {binDir: /var/lib/rancher/k3s/data/cni, confDir: /var/lib/rancher/k3s/agent/etc/cni/net.d}
openshift: {binDir: /var/lib/cni/bin, confDir: /etc/cni/multus/net.d, seLinuxOptions: {type: spc_t}}
talos: {}
{{- end }}
{{- define "redirector.nodeDirs" -}}
{{- $platform := get (include "redirector.platform" . | fromYaml) .Values.platform | default dict }}
binDir: {{ .Values.cni.binDir | default $platform.binDir | default "/opt/cni/bin" }}
confDir: {{ .Values.cni.confDir | default $platform.confDir | default "/etc/cni/net.d" }}
seLinuxOptions: {{ .Values.seLinuxOptions | default $platform.seLinuxOptions | default dict | toJson }}
{{- end }}
