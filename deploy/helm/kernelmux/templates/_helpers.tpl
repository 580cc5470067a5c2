{{- define "kernelmux.labels" -}}
{{ include "kernelmux.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "kernelmux.selector" -}}
app.kubernetes.io/name: kernelmux-gateway
{{- end -}}

{{/* The path prefix, without a slash at its end. */}}
{{- define "kernelmux.prefix" -}}
{{ .Values.baseUrl | trimSuffix "/" }}
{{- end -}}

{{- define "kernelmux.tokenSecret" -}}
{{ .Values.token.existingSecret | default "kernelmux-token" }}
{{- end -}}

{{- define "kernelmux.scheme" -}}
{{ ternary "HTTPS" "HTTP" (ne .Values.tls.secretName "") }}
{{- end -}}

{{- define "kernelmux.probe" -}}
httpGet: {path: {{ include "kernelmux.prefix" . }}/healthz, port: http, scheme: {{ include "kernelmux.scheme" . }}}
{{- end -}}

{{/* The settings that the gateway does not reload, as JSON. */}}
{{- define "kernelmux.restarting" -}}
{{ omit .Values.config
    "allow-origin" "allow-credentials" "allow-headers" "allow-methods" "expose-headers"
    "cors-max-age" "no-list" "no-shares" "default-kernel" "cull-idle-timeout" "cull-interval"
    "cull-connected" "cull-busy" "cull-max-age" "cull-warning" "max-kernels" "max-kernels-per-user"
    "user-starts-per-minute" "user-requests-per-minute" "user-connections-per-minute" "client-envs" "kernelspecs"
    "authorized-users" "unauthorized-users"
    "log-retention" "group-roles" "log"
   | toJson }}
{{- end -}}
