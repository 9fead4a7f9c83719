{{- define "airloop.name" -}}
{{- printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "airloop.selector" -}}
app.kubernetes.io/name: airloop-{{ .part }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "airloop.labels" -}}
{{ include "airloop.selector" . }}
app.kubernetes.io/component: {{ .part }}
app.kubernetes.io/part-of: airloop
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "airloop.mlflowUri" -}}
{{- if .Values.mlflow.enabled -}}
http://{{ include "airloop.name" (dict "root" . "part" "mlflow") }}:{{ .Values.mlflow.service.port }}
{{- else -}}
{{ .Values.serving.mlflowUri }}
{{- end -}}
{{- end -}}

{{/* The namespaces of Airflow's accounts, each once. */}}
{{- define "airloop.airflowNamespaces" -}}
{{- $found := list -}}
{{- if .Values.training.enabled -}}
{{- range .Values.training.airflowAccounts }}{{ $found = append $found .namespace }}{{ end -}}
{{- end -}}
{{- $found | uniq | sortAlpha | toJson -}}
{{- end -}}

{{/* Variables of the object store. The keys may be missing in the secret: then the service account gives access. */}}
{{- define "airloop.storageEnv" -}}
- { name: AWS_REGION, value: {{ .root.Values.storage.region | quote }} }
{{- with .root.Values.storage.endpoint }}
- { name: AWS_ENDPOINT_URL, value: {{ . | quote }} }
{{- end }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- { name: {{ . }}, valueFrom: { secretKeyRef: { name: {{ $.secret }}, key: {{ . }}, optional: true } } }
{{- end }}
{{- end -}}

{{- define "airloop.secretEnv" -}}
{{- range .keys }}
- { name: {{ . }}, valueFrom: { secretKeyRef: { name: {{ $.secret }}, key: {{ . }} } } }
{{- end }}
{{- end -}}

{{- define "airloop.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "airloop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* Egress of a part: names' servers, and ports anywhere. */}}
{{- define "airloop.egress" -}}
- ports: [{ port: 53, protocol: UDP }, { port: 53, protocol: TCP }]
{{- with .ports }}
- ports: [{{ range $i, $port := . }}{{ if $i }}, {{ end }}{ port: {{ $port }}, protocol: TCP }{{ end }}]
{{- end }}
{{- end -}}

{{/* An image, by a tag that does not move. */}}
{{- define "airloop.image" -}}
{{- if eq .image.tag "latest" }}
{{- fail (printf "%s.image.tag is 'latest', which moves: nobody could say what runs, nor roll back. Name a version" .part) }}
{{- end -}}
{{ printf "%s:%s" .image.repository .image.tag | quote }}
{{- end -}}
