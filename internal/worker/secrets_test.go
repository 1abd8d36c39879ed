package worker

import (
	"testing"

	"github.com/ottoscaler/ottoscaler/internal/pod"
	"github.com/ottoscaler/ottoscaler/pkg/scaleevent"
)

const withSecrets = `
pools:
  open: {template: &template {spec: {
    initContainers: [{name: clone, image: i, env: [{name: T, valueFrom: {secretKeyRef: {name: git, key: token}}}]}],
    containers: [{name: agent, image: i,
      env: [{name: P, valueFrom: {secretKeyRef: {name: registry, key: password}}}, {name: Q, value: plain}, {name: R, valueFrom: {fieldRef: {fieldPath: metadata.name}}}],
      envFrom: [{secretRef: {name: all}}, {configMapRef: {name: not-a-secret}}]}],
    imagePullSecrets: [{name: pull}],
    volumes: [
      {name: a, secret: {secretName: whole}},
      {name: b, secret: {secretName: part, items: [{key: one, path: p}, {key: two, path: q}]}},
      {name: c, projected: {sources: [{secret: {name: projected, items: [{key: k, path: p}]}}, {configMap: {name: not-a-secret}}, {secret: {name: all, items: [{key: k, path: r}]}}]}},
      {name: d, emptyDir: {}}]}}}
  masked: {logs: {maskSecrets: true}, template: *template}
`

func TestWorkersOfAPoolThatAsksNameTheSecretsToHide(t *testing.T) {
	pools := mustParse(t, withSecrets)
	for pool, want := range map[string]string{
		"open":   "",
		"masked": "all,git/token,part/one,part/two,projected/k,registry/password,whole",
	} {
		b, err := newBuilder(scaleevent.Event{ID: "1-0", Type: scaleevent.ScaleUp, Pool: pool}, pools.Get(pool), "space", "inst")
		if err != nil {
			t.Fatal(err)
		}
		got, there := b.build(0).Annotations[pod.AnnotationMaskSecrets]
		if got != want || there != (want != "") {
			t.Errorf("pool %s: annotation %q (there: %v), want %q", pool, got, there, want)
		}
	}
}
