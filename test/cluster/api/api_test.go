package api_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ottoscaler/ottoscaler/test/cluster/api"
)

// serve answers every request with one status and body, and tells of the request.
func serve(t *testing.T, status int, body string) (*api.Client, *string) {
	t.Helper()
	var request string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		request = r.Method + " " + r.URL.String() + " " + string(b)
		w.WriteHeader(status)
		if _, err := io.WriteString(w, body); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return api.New(s.URL, nil), &request
}

func TestNodesAreReadWithTheirCondition(t *testing.T) {
	c, request := serve(t, http.StatusOK, `{"items":[
		{"metadata":{"name":"n1"},"status":{"conditions":[{"type":"Ready","status":"True"}],
		 "nodeInfo":{"kubeletVersion":"v1.37.2","containerRuntimeVersion":"containerd://2.4.2"}}},
		{"metadata":{"name":"n2"},"status":{"conditions":[{"type":"MemoryPressure","status":"True"},{"type":"Ready","status":"Unknown"}]}}]}`)
	got, err := c.Nodes(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	want := []api.Node{{Name: "n1", Ready: true, Version: "v1.37.2", Runtime: "containerd://2.4.2"}, {Name: "n2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if !strings.Contains(*request, "type!=kwok") {
		t.Errorf("request = %s, want kwok's nodes left out", *request)
	}
}

func TestCreatingWhatExistsIsNoError(t *testing.T) {
	c, request := serve(t, http.StatusConflict, "already exists")
	if err := c.Create(t.Context(), "/api/v1/nodes", map[string]string{"kind": "Node"}); err != nil {
		t.Error(err)
	}
	if want := `POST /api/v1/nodes {"kind":"Node"}`; *request != want {
		t.Errorf("request = %s, want %s", *request, want)
	}
}

func TestARefusalSaysWhatTheServerSaid(t *testing.T) {
	c, _ := serve(t, http.StatusInternalServerError, "[-]etcd failed")
	if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "etcd failed") {
		t.Errorf("err = %v, want the server's words", err)
	}
}
