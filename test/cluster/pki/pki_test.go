package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ottoscaler/ottoscaler/test/cluster/pki"
)

func open(t *testing.T, dir string) *pki.Authority {
	t.Helper()
	a, err := pki.Open(dir, "ca")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *pki.Authority, s pki.Subject) {
	t.Helper()
	if err := a.Issue(s); err != nil {
		t.Fatal(err)
	}
}

// serve runs a TLS server that wants client certificates of the authority, and
// answers with the client's name and groups.
func serve(t *testing.T, a *pki.Authority) string {
	t.Helper()
	settings, err := a.Client("server")
	if err != nil {
		t.Fatal(err)
	}
	settings.ClientAuth, settings.ClientCAs = tls.RequireAndVerifyClientCert, settings.RootCAs
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		subject := r.TLS.PeerCertificates[0].Subject
		w.Header().Set("Client", strings.Join(append(subject.Organization, subject.CommonName), "/"))
	}))
	s.TLS = settings
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

func TestServerAndClientOfOneAuthorityTrustEachOther(t *testing.T) {
	a := open(t, t.TempDir())
	issue(t, a, pki.Subject{Name: "server", Common: "s", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	issue(t, a, pki.Subject{Name: "admin", Common: "admin", Groups: []string{"system:masters"}, Client: true})
	url := serve(t, a)
	settings, err := a.Client("admin")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: settings}}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := resp.Header.Get("Client"), "system:masters/admin"; got != want {
		t.Errorf("the server saw %q, want %q", got, want)
	}
}

func TestAServersCertificateIsRefusedFromAClient(t *testing.T) {
	a := open(t, t.TempDir())
	issue(t, a, pki.Subject{Name: "server", Common: "s", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	url := serve(t, a)
	settings, err := a.Client("server")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: settings}}).Get(url)
	if err == nil {
		_ = resp.Body.Close()
		t.Error("a certificate without client usage was accepted")
	}
}

func TestIssuingAgainKeepsTheFiles(t *testing.T) {
	dir := t.TempDir()
	read := func() string {
		var all strings.Builder
		for _, name := range []string{"ca.crt", "ca.key", "server.crt", "server.key"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		return all.String()
	}
	issue(t, open(t, dir), pki.Subject{Name: "server", Common: "s", DNS: []string{"localhost"}})
	before := read()
	issue(t, open(t, dir), pki.Subject{Name: "server", Common: "s", DNS: []string{"localhost"}})
	if read() != before {
		t.Error("files changed")
	}
	// A crash between key and certificate leaves the key alone: both are made anew.
	if err := os.Remove(filepath.Join(dir, "server.crt")); err != nil {
		t.Fatal(err)
	}
	issue(t, open(t, dir), pki.Subject{Name: "server", Common: "s", DNS: []string{"localhost"}})
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")); err != nil {
		t.Errorf("after repair: %v", err)
	}
}

func TestALeafVerifiesForItsNamesOnly(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	issue(t, a, pki.Subject{Name: "server", Common: "s", DNS: []string{"kubernetes"}, IPs: []netip.Addr{netip.MustParseAddr("10.192.128.1")}})
	b, err := os.ReadFile(a.CertFile("server"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for host, ok := range map[string]bool{"kubernetes": true, "10.192.128.1": true, "10.192.128.2": false, "example.org": false} {
		if err := leaf.VerifyHostname(host); (err == nil) != ok {
			t.Errorf("%s: %v, want accepted = %v", host, err, ok)
		}
	}
}

func TestAKubeconfigCarriesItsCertificates(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	issue(t, a, pki.Subject{Name: "admin", Common: "admin", Client: true})
	path := filepath.Join(dir, "kubeconfig")
	server := "https://" + net.JoinHostPort("10.192.0.1", "24002")
	if err := a.WriteKubeconfig(path, "admin", server); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Clusters []struct {
			Cluster struct {
				Server string `json:"server"`
				CA     []byte `json:"certificate-authority-data"`
			} `json:"cluster"`
		} `json:"clusters"`
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			} `json:"user"`
		} `json:"users"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Clusters[0].Cluster.Server != server {
		t.Errorf("server = %q, want %q", got.Clusters[0].Cluster.Server, server)
	}
	if _, err := tls.X509KeyPair(got.Users[0].User.Cert, got.Users[0].User.Key); err != nil {
		t.Errorf("client pair: %v", err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(got.Clusters[0].Cluster.CA) {
		t.Error("the authority's certificate is not readable")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode = %v, %v; a key must be readable by its owner only", info.Mode(), err)
	}
}
