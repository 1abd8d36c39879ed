package chart_test

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// withLogServer are values that install a log server and name none.
func withLogServer() values {
	vals := minimal()
	vals["logRelay"] = values{}
	vals["logServer"] = values{"enabled": true}
	return vals
}

func TestRelaySendsToTheLogServerBesideIt(t *testing.T) {
	r := render(t, "jinwoo", withLogServer())
	service := one[*corev1.Service](t, r)
	want := fmt.Sprintf("%s.%s.svc:%d", service.Name, namespace, service.Spec.Ports[0].Port)
	relay := container(t, one[*appsv1.Deployment](t, r), "log-relay")
	if got := variable(t, relay, "LOG_SERVER_ADDR").Value; got != want {
		t.Errorf("the relay sends to %s, the Service is %s", got, want)
	}
	set := one[*appsv1.StatefulSet](t, r)
	selector := labels.SelectorFromSet(service.Spec.Selector)
	if !selector.Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Errorf("the Service selects %v, the log server's pod has %v", service.Spec.Selector, set.Spec.Template.Labels)
	}
	main := one[*appsv1.Deployment](t, r)
	if selector.Matches(labels.Set(main.Spec.Template.Labels)) {
		t.Error("the Service also selects the main pod")
	}
	if labels.SelectorFromSet(main.Spec.Selector.MatchLabels).Matches(labels.Set(set.Spec.Template.Labels)) {
		t.Error("the Deployment would adopt the log server's pod")
	}
}

// A developer's values name another one already; one value is to be enough.
func TestLogServerBesideTheRelayComesBeforeTheOneItIsTold(t *testing.T) {
	vals := withLogServer()
	set(vals, "logRelay.env.LOG_SERVER_ADDR", "logs.example:443")
	r := render(t, "ottoscaler", vals)
	relay := container(t, one[*appsv1.Deployment](t, r), "log-relay")
	want := fmt.Sprintf("ottoscaler-logs.%s.svc:50051", namespace)
	var got []string
	for _, v := range relay.Env {
		if v.Name == "LOG_SERVER_ADDR" {
			got = append(got, v.Value)
		}
	}
	if len(got) != 1 || got[0] != want {
		t.Errorf("LOG_SERVER_ADDR is %v, want %s alone", got, want)
	}
	if notes := r.notes(); !strings.Contains(notes, "and not to logRelay.env.LOG_SERVER_ADDR (logs.example:443)") {
		t.Errorf("the notes do not say which address is not used:\n%s", notes)
	}
}

func TestThereIsNoLogServerUnlessItIsAskedFor(t *testing.T) {
	r := render(t, "ottoscaler", minimal())
	if len(all[*appsv1.StatefulSet](r))+len(all[*corev1.Service](r))+len(all[*corev1.PersistentVolumeClaim](r)) > 0 {
		t.Error("the chart installs something of a log server")
	}
	vals := minimal()
	vals["logRelay"] = values{}
	if _, err := tryRender(t, "ottoscaler", vals); err == nil || !strings.Contains(err.Error(), "LOG_SERVER_ADDR is not set") {
		t.Errorf("without any log server: got error %v, want one about LOG_SERVER_ADDR", err)
	}
}

// The page asks nobody who he is: it must not be on the pod's network.
func TestPageOfTheLogServerStaysOnLoopback(t *testing.T) {
	r := render(t, "ottoscaler", withLogServer())
	server := one[*appsv1.StatefulSet](t, r).Spec.Template.Spec.Containers[0]
	if got := variable(t, server, "HTTP_LISTEN").Value; got != "127.0.0.1:8080" {
		t.Errorf("the page listens on %s", got)
	}
	for _, port := range one[*corev1.Service](t, r).Spec.Ports {
		if port.TargetPort.String() != "grpc" {
			t.Errorf("the Service leads to port %s", port.TargetPort.String())
		}
	}
	if notes := r.notes(); !strings.Contains(notes, "port-forward statefulset/ottoscaler-logs 8080") {
		t.Errorf("the notes do not say how to see the page:\n%s", notes)
	}
}

func TestDatabaseOfTheLogServerLiesWhereTheValuesSay(t *testing.T) {
	for _, persistent := range []bool{false, true} {
		vals := withLogServer()
		set(vals, "logServer.persistence.enabled", persistent)
		r := render(t, "ottoscaler", vals)
		pod := one[*appsv1.StatefulSet](t, r).Spec.Template.Spec
		volume := pod.Volumes[0]
		if claim := volume.PersistentVolumeClaim; persistent != (claim != nil) || persistent == (volume.EmptyDir != nil) {
			t.Errorf("persistence %t: the volume is %v", persistent, volume.VolumeSource)
		}
		if got := len(all[*corev1.PersistentVolumeClaim](r)); (got == 1) != persistent {
			t.Errorf("persistence %t: %d claims", persistent, got)
		}
		if got, want := variable(t, pod.Containers[0], "DATA_DIR").Value, pod.Containers[0].VolumeMounts[0].MountPath; got != want {
			t.Errorf("DATA_DIR is %s, the volume is mounted on %s", got, want)
		}
	}
}
