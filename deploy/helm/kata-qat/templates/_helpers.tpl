{{- define "kata-qat.labels" -}}
app.kubernetes.io/name: kata-qat
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: kata-qat
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "kata-qat.selector" -}}
app.kubernetes.io/name: kata-qat
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The first release is called kata-qat, as most are; another has its own names. */}}
{{- define "kata-qat.name" -}}
{{- if contains "kata-qat" .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-kata-qat" .Release.Name }}{{ end }}
{{- end }}

{{- define "kata-qat.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The configuration as a tree: what the chart knows, and over it .Values.config. */}}
{{- define "kata-qat.config" -}}
{{- $profiles := dict }}
{{- $handlers := list "kata" "kata-*" }}
{{- range .Values.runtimes }}
{{- $handlers = append $handlers .name }}
{{- $_ := set $profiles .name (.profile | default "vfio") }}
{{- end }}
{{- $config := dict
  "handlers" ($handlers | uniq)
  "profiles" $profiles
  "run_dir" .Values.host.runDir
  "nri" (dict "socket" (printf "%s/nri.sock" .Values.host.nri))
  "containerd" (dict "state" .Values.host.containerdState)
  "cdi" (dict "dir" .Values.host.cdi)
  "kubelet" (dict "pod_resources" (printf "%s/pod-resources/kubelet.sock" .Values.host.kubelet))
  "device_plugin" (dict "enable" .Values.devicePlugin.enabled "policy" .Values.devicePlugin.policy "dir" (printf "%s/device-plugins" .Values.host.kubelet))
  "metrics" (dict "listen" (ternary (printf (ternary "[%s]:%v" "%s:%v" (contains ":" .Values.metrics.host)) .Values.metrics.host .Values.metrics.port) "" .Values.metrics.enabled))
  "events" (dict "kubernetes" .Values.events.enabled)
  "provision" (dict "boot_unit" false)
}}
{{- mustMergeOverwrite $config (deepCopy .Values.config) | toYaml }}
{{- end }}

{{/* A tree as TOML. Helm's toToml makes floats of whole numbers, which a strict
     reader refuses; JSON's scalars and lists of them are TOML as they are. */}}
{{- define "kata-qat.toml" -}}
{{- $path := .path }}
{{- range $k, $v := .tree }}
{{- if not (or (kindIs "map" $v) (and (kindIs "slice" $v) $v (kindIs "map" (first $v)))) }}
{{ template "kata-qat.key" $k }} = {{ toJson $v }}
{{- end }}
{{- end }}
{{- range $k, $v := .tree }}
{{- $name := include "kata-qat.key" $k }}
{{- if $path }}{{ $name = printf "%s.%s" $path $name }}{{ end }}
{{- if kindIs "map" $v }}

[{{ $name }}]
{{- include "kata-qat.toml" (dict "path" $name "tree" $v) }}
{{- else if and (kindIs "slice" $v) $v (kindIs "map" (first $v)) }}
{{- range $v }}

[[{{ $name }}]]
{{- include "kata-qat.toml" (dict "path" $name "tree" .) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "kata-qat.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* What every container has. */}}
{{- define "kata-qat.program" -}}
image: {{ include "kata-qat.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* And every one that has the host below /host; env comes last. */}}
{{- define "kata-qat.container" -}}
{{ include "kata-qat.program" . }}
env:
  - {name: KATA_QAT_HOST_ROOT, value: /host}
  - {name: KATA_QAT_CONFIG, value: /etc/kata-qat/config.toml}
{{- end }}

{{- define "kata-qat.security" -}}
securityContext:
  runAsUser: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    {{- with . }}
    add: {{ toJson . }}
    {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{/* Goes on after it. The runtime's AppArmor profile has no rule for D-Bus, which
Ubuntu mediates, and by D-Bus the node's systemd is asked. */}}
{{- define "kata-qat.unconfined" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
  appArmorProfile:
    type: Unconfined
{{- end }}
{{- end }}

{{/* A mount below it that is not to be written either, where the server knows how. */}}
{{- define "kata-qat.readonly" -}}
readOnly: true{{ if semverCompare ">=1.31.0-0" .Capabilities.KubeVersion.Version }}, recursiveReadOnly: IfPossible{{ end }}
{{- end }}

{{/* The steps that change a node, or put it back. */}}
{{- define "kata-qat.provision.host" -}}
{{- $caps := list "CHOWN" "DAC_OVERRIDE" "FOWNER" "FSETID" "SETGID" "SETUID" "SYS_CHROOT" "SYS_MODULE" }}
{{- include "kata-qat.container" . }}
{{ include "kata-qat.security" $caps }}{{ include "kata-qat.unconfined" . }}
volumeMounts:
  - {name: config, mountPath: /etc/kata-qat, readOnly: true}
  - {name: root, mountPath: /host, mountPropagation: HostToContainer}
{{- end }}

{{- define "kata-qat.provision.guest" -}}
{{- include "kata-qat.container" . }}
{{ include "kata-qat.security" list }}
volumeMounts:
  - {name: config, mountPath: /etc/kata-qat, readOnly: true}
  - {name: root, mountPath: /host, readOnly: true}
  - {name: state, mountPath: /host/var/lib/kata-qat}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "kata-qat.provision.runtime" -}}
{{- $caps := list "CHOWN" "DAC_OVERRIDE" "FOWNER" "SYS_CHROOT" }}
{{- include "kata-qat.container" . }}
{{ include "kata-qat.security" $caps }}{{ include "kata-qat.unconfined" . }}
volumeMounts:
  - {name: config, mountPath: /etc/kata-qat, readOnly: true}
  - {name: root, mountPath: /host, mountPropagation: HostToContainer}
{{- end }}

{{- define "kata-qat.provision.volumes" -}}
- name: config
  configMap: {name: {{ include "kata-qat.name" . }}}
- name: root
  hostPath: {path: /, type: Directory}
- name: state
  hostPath: {path: /var/lib/kata-qat, type: DirectoryOrCreate}
- name: tmp
  emptyDir: {}
{{- end }}

{{- define "kata-qat.profiles" -}}
{{- $profiles := list }}
{{- range .Values.runtimes }}{{ $profiles = append $profiles (.profile | default "vfio") }}{{ end }}
{{- $profiles | uniq | sortAlpha | toJson }}
{{- end }}

{{/* What makes a pod run on the nodes that are meant, before all others. */}}
{{- define "kata-qat.pod" -}}
serviceAccountName: {{ include "kata-qat.name" . }}
automountServiceAccountToken: false
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.seLinuxOptions }}
securityContext:
  seLinuxOptions: {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{/* The service account's token, for the containers that mount it alone. */}}
{{- define "kata-qat.token" -}}
- name: token
  projected:
    defaultMode: 0400
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end }}

{{- define "kata-qat.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* The daemon's own answer, at an address of the node. */}}
{{- define "kata-qat.probe" -}}
httpGet:
  path: {{ . | first }}
  port: {{ last .  }}
  host: {{ index . 1 | replace "0.0.0.0" "127.0.0.1" | quote }}
{{- end }}
