{{- /*
One Deployment of workers and what belongs to it: dict of root, component (also the names' last part), arguments,
replicas, resources, settings (of this component only), template, cluster (it speaks to the API server).
*/ -}}
{{- define "runyard.worker" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $name := printf "%s-%s" (include "runyard.fullname" .root) .component -}}
{{- $labels := include "runyard.labels" . -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
data:
  TEMPORAL_ADDRESS: {{ $values.temporal.address | quote }}
  TEMPORAL_NAMESPACE: {{ $values.temporal.namespace | quote }}
  {{- if $values.temporal.existingSecret }}
  TEMPORAL_CONFIG_FILE: /etc/runyard/temporal/temporal.toml
  {{- end }}
  RUNYARD_STORE: s3
  {{- with $values.store.s3 }}
  RUNYARD_S3_BUCKET: {{ .bucket | quote }}
  {{- with .endpoint }}
  RUNYARD_S3_ENDPOINT: {{ . | quote }}
  {{- end }}
  {{- with .publicEndpoint }}
  RUNYARD_S3_PUBLIC_ENDPOINT: {{ . | quote }}
  {{- end }}
  {{- with .prefix }}
  RUNYARD_S3_PREFIX: {{ . | quote }}
  {{- end }}
  {{- with .region }}
  RUNYARD_S3_REGION: {{ . | quote }}
  {{- end }}
  {{- if .existingSecret }}
  RUNYARD_S3_CREDENTIALS_FILE: /etc/runyard/s3/credentials
  {{- end }}
  {{- if .caConfigMap }}
  RUNYARD_S3_CA_FILE: /etc/runyard/s3-ca/ca.crt
  {{- end }}
  {{- end }}
  {{- if $values.metrics.enabled }}
  RUNYARD_METRICS_ADDRESS: "0.0.0.0:{{ $values.metrics.port }}"
  {{- end }}
  RUNYARD_LOG_FORMAT: {{ $values.log.format }}
  RUNYARD_LOG_LEVEL: {{ $values.log.level }}
  {{- if $values.tracing.endpoint }}
  OTEL_EXPORTER_OTLP_ENDPOINT: {{ $values.tracing.endpoint | quote }}
  OTEL_SERVICE_NAME: {{ $values.tracing.serviceName | quote }}
  {{- end }}
  {{- if .template }}
  RUNYARD_KUBERNETES_TEMPLATE: /etc/runyard/pods/template.yaml
  {{- end }}
  {{- /* the more special wins */}}
  {{- include "runyard.settings" (mergeOverwrite (dict) (deepCopy $values.settings) (deepCopy .settings)) | nindent 2 }}
{{- if .template }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}-pods
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
data:
  template.yaml: |
    {{- toYaml .template | nindent 4 }}
{{- end }}
{{- if $values.serviceAccount.create }}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
  {{- with $values.serviceAccount.annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  replicas: {{ .replicas }}
  selector:
    matchLabels: {{- include "runyard.selector" . | nindent 6 }}
  strategy:
    rollingUpdate: {maxUnavailable: 1, maxSurge: 1}
  template:
    metadata:
      labels:
        {{- include "runyard.labels" . | nindent 8 }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        # a change of the settings replaces the workers, which read them at their start only
        runyard.dev/settings: {{ list $values.temporal $values.store $values.log $values.tracing $values.metrics.port $values.settings .settings .template | toJson | sha256sum }}
        {{- with $values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "runyard.account" . }}
      automountServiceAccountToken: {{ .cluster }}
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
      {{- if $values.hostNetwork }}
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "runyard.selector" . | nindent 14 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        seccompProfile: {type: RuntimeDefault}
      containers:
        - name: worker
          image: {{ include "runyard.image" $root }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          args: {{- toYaml .arguments | nindent 12 }}
          envFrom:
            - configMapRef: {name: {{ $name }}}
          {{- $headers := and $values.tracing.endpoint $values.tracing.existingSecret }}
          {{- if or .cluster $headers $values.extraEnv }}
          env:
            {{- if .cluster }}
            - {name: RUNYARD_KUBERNETES_AGENT_IMAGE, value: {{ include "runyard.image" $root }}}
            - {name: RUNYARD_KUBERNETES_NAMESPACE, value: {{ .namespace }}}
            {{- end }}
            {{- if $headers }}
            - name: OTEL_EXPORTER_OTLP_HEADERS
              valueFrom: {secretKeyRef: {name: {{ $values.tracing.existingSecret }}, key: headers}}
            {{- end }}
            {{- with $values.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          {{- end }}
          {{- if $values.metrics.enabled }}
          ports:
            - {name: metrics, containerPort: {{ $values.metrics.port }}}
          startupProbe:
            httpGet: {path: /healthz, port: metrics}
            periodSeconds: 2
            failureThreshold: 60
          livenessProbe: # the loop turns; a server that is away is no reason to start again
            httpGet: {path: /healthz, port: metrics}
            periodSeconds: 20
            timeoutSeconds: 10
            failureThreshold: 6
          readinessProbe: # it polls its queues
            httpGet: {path: /readyz, port: metrics}
            periodSeconds: 10
          {{- end }}
          {{- with .resources }}
          resources: {{- toYaml . | nindent 12 }}
          {{- end }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- if $values.temporal.existingSecret }}
            - {name: temporal, mountPath: /etc/runyard/temporal, readOnly: true}
            {{- end }}
            {{- if $values.store.s3.existingSecret }}
            - {name: s3, mountPath: /etc/runyard/s3, readOnly: true}
            {{- end }}
            {{- if $values.store.s3.caConfigMap }}
            - {name: s3-ca, mountPath: /etc/runyard/s3-ca, readOnly: true}
            {{- end }}
            {{- if .template }}
            - {name: pods, mountPath: /etc/runyard/pods, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {}
        {{- with $values.temporal.existingSecret }}
        - name: temporal
          secret: {secretName: {{ . }}, defaultMode: 0440}
        {{- end }}
        {{- with $values.store.s3.existingSecret }}
        - name: s3
          secret: {secretName: {{ . }}, defaultMode: 0440}
        {{- end }}
        {{- with $values.store.s3.caConfigMap }}
        - name: s3-ca
          configMap: {name: {{ . }}}
        {{- end }}
        {{- if .template }}
        - name: pods
          configMap: {name: {{ $name }}-pods}
        {{- end }}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- $labels | nindent 4 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels: {{- include "runyard.selector" . | nindent 6 }}
{{- end }}
{{- end -}}
