{{/* Rules of NetworkPolicies. Each helper prints a list of rules or of peers. */}}

{{/* The port of an address: as written, else that of its scheme. */}}
{{- define "airloop.portOf" -}}
{{- $url := urlParse . -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "http" | ternary "80" "443") -}}
{{- end -}}

{{/* The port of the object store: of storage.endpoint; AWS itself answers on 443. */}}
{{- define "airloop.storagePort" -}}
{{- include "airloop.portOf" (.Values.storage.endpoint | default "https://s3.amazonaws.com") -}}
{{- end -}}

{{/* One rule: a port (or ports) of peers. Without peers: of any address. */}}
{{- define "airloop.rule" -}}
- ports: [{{ range $i, $port := .ports }}{{ if $i }}, {{ end }}{ port: {{ $port }}, protocol: TCP }{{ end }}]
  {{- with .to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Egress to servers outside the charts. .uses: a list of dns, storage, database, onlineStore, kubernetesApi. */}}
{{- define "airloop.egress" -}}
{{- $network := .root.Values.network -}}
{{- if has "dns" .uses }}
- ports: [{ port: 53, protocol: UDP }, { port: 53, protocol: TCP }]
  to: {{- toYaml $network.dns.to | nindent 4 }}
{{- end }}
{{- if has "storage" .uses }}
{{ include "airloop.rule" (dict "ports" (list (include "airloop.storagePort" .root)) "to" $network.storage.to) }}
{{- end }}
{{- if has "database" .uses }}
{{ include "airloop.rule" (dict "ports" (list $network.database.port) "to" $network.database.to) }}
{{- end }}
{{- if has "onlineStore" .uses }}
{{ include "airloop.rule" (dict "ports" (list $network.onlineStore.port) "to" $network.onlineStore.to) }}
{{- end }}
{{- if has "kubernetesApi" .uses }}
{{ include "airloop.rule" (dict "ports" $network.kubernetesApi.ports "to" $network.kubernetesApi.to) }}
{{- end }}
{{- end -}}

{{/* MLflow's server: the chart's own, else the one at serving.mlflowUri. */}}
{{- define "airloop.toMlflow" -}}
{{- if .root.Values.mlflow.enabled }}
- ports: [{ port: 5000, protocol: TCP }]
  to:
    - namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: {{ .root.Release.Namespace }} } }
      podSelector:
        matchLabels: {{- include "airloop.selector" (dict "root" .root "part" "mlflow") | nindent 10 }}
{{- else if .root.Values.serving.mlflowUri }}
{{ include "airloop.rule" (dict "ports" (list (include "airloop.portOf" .root.Values.serving.mlflowUri)) "to" .root.Values.network.mlflow.to) }}
{{- end }}
{{- end -}}

{{/* Serving, from Airflow's namespace. */}}
{{- define "airloop.toServing" -}}
{{- if .root.Values.serving.enabled }}
- ports: [{ port: 8000, protocol: TCP }]
  to:
    - namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: {{ .root.Release.Namespace }} } }
      podSelector:
        matchLabels: {{- include "airloop.selector" (dict "root" .root "part" "serving") | nindent 10 }}
{{- end }}
{{- end -}}

{{/* Airflow's pods of these components, as peers in other namespaces. */}}
{{- define "airloop.fromAirflow" -}}
{{- $root := .root -}}
- namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: {{ $root.Values.airflow.namespace }} } }
  podSelector:
    matchLabels: { tier: airflow, release: {{ $root.Values.airflow.release }} }
    matchExpressions: [{ key: component, operator: In, values: {{ toJson .components }} }]
{{- end -}}
