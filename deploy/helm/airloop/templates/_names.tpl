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
fsGroupChangePolicy: OnRootMismatch # a big volume is not walked at every start
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "airloop.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{/* An image by its digest; by its tag only where no registry has it, and the node may not ask one. */}}
{{- define "airloop.image" -}}
{{- if eq .image.tag "latest" }}
{{- fail (printf "%s.image.tag is 'latest', which moves: nobody could say what runs, nor roll back. Name a version" .part) }}
{{- end -}}
{{- if .image.digest -}}
{{ printf "%s%s@%s" .image.repository (empty .image.tag | ternary "" (printf ":%s" .image.tag)) .image.digest | quote }}
{{- else if not .image.local -}}
{{- fail (printf "%s.image.digest is not set: a tag can move to another image. Set the digest that `docker push` printed (sha256:...), or %s.image.local: true for an image that was loaded onto the nodes and is in no registry" .part .part) }}
{{- else -}}
{{ printf "%s:%s" .image.repository .image.tag | quote }}
{{- end -}}
{{- end -}}

{{/* An image that no registry has is never pulled. */}}
{{- define "airloop.pullPolicy" -}}
{{ .image.local | ternary "Never" .image.pullPolicy }}
{{- end -}}
