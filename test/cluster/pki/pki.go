// Package pki issues the certificates of a cluster and writes kubeconfigs.
//
// There are two authorities, as kubeadm makes them: one for everybody, one for
// the front proxy. Issuing is idempotent: a pair of files that exists is kept.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/ottoscaler/ottoscaler/test/cluster/state"
)

// validity is longer than any test cluster lives.
const validity = 5 * 365 * 24 * time.Hour

// An Authority signs certificates and keeps all files in one folder.
type Authority struct {
	dir  string
	name string
	cert *x509.Certificate
	key  crypto.Signer
}

// A Subject is whom a certificate is for.
type Subject struct {
	// Name is the file's name, and Common the name that Kubernetes sees.
	Name, Common string
	Groups       []string
	// IPs and DNS make it a server's certificate.
	IPs []netip.Addr
	DNS []string
	// Client makes it a client's certificate.
	Client bool
}

// Open returns the authority of that name, and makes it when there is none.
func Open(dir, name string) (*Authority, error) {
	a := &Authority{dir: dir, name: name}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if err := a.issue(name, template); err != nil {
		return nil, fmt.Errorf("making authority %s: %w", name, err)
	}
	return Load(dir, name)
}

// Load returns the authority of that name, which must exist.
func Load(dir, name string) (*Authority, error) {
	a := &Authority{dir: dir, name: name}
	pair, err := tls.LoadX509KeyPair(a.CertFile(name), a.KeyFile(name))
	if err != nil {
		return nil, fmt.Errorf("reading authority %s: %w", name, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("reading authority %s: its key cannot sign", name)
	}
	a.cert, a.key = pair.Leaf, signer
	return a, nil
}

// Issue makes sure that the subject has a certificate and a key.
func (a *Authority) Issue(s Subject) error {
	template := &x509.Certificate{
		Subject:  pkix.Name{CommonName: s.Common, Organization: s.Groups},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		DNSNames: s.DNS,
	}
	for _, ip := range s.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	if len(s.IPs)+len(s.DNS) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if s.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if err := a.issue(s.Name, template); err != nil {
		return fmt.Errorf("issuing the certificate of %s: %w", s.Name, err)
	}
	return nil
}

// issue signs the template, with itself when there is no authority yet.
func (a *Authority) issue(name string, template *x509.Certificate) error {
	if exists(a.CertFile(name)) && exists(a.KeyFile(name)) {
		return nil
	}
	key, err := writeKey(a.KeyFile(name))
	if err != nil {
		return err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	template.NotBefore = time.Now().Add(-time.Hour) // clocks of containers and hosts differ
	template.NotAfter = time.Now().Add(validity)
	parent, signer := template, crypto.Signer(key)
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return err
	}
	return state.WriteFile(a.CertFile(name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// CertFile is the path of a subject's certificate, or the authority's own.
func (a *Authority) CertFile(name string) string { return filepath.Join(a.dir, name+".crt") }

// KeyFile is the path of a subject's key.
func (a *Authority) KeyFile(name string) string { return filepath.Join(a.dir, name+".key") }

// Client returns the TLS settings of a subject that calls servers of this authority.
func (a *Authority) Client(name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(a.CertFile(name), a.KeyFile(name))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}, nil
}

// WriteKubeconfig writes a file with which the subject reaches the server. It
// is JSON, which is YAML.
func (a *Authority) WriteKubeconfig(path, name, server string) error {
	type object = map[string]any
	var data [3][]byte // encoded in base64 by encoding/json
	for i, file := range []string{a.CertFile(a.name), a.CertFile(name), a.KeyFile(name)} {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		data[i] = b
	}
	const context = "cluster"
	b, err := json.MarshalIndent(object{
		"apiVersion": "v1", "kind": "Config", "current-context": context,
		"clusters": []object{{"name": context, "cluster": object{"server": server, "certificate-authority-data": data[0]}}},
		"users":    []object{{"name": name, "user": object{"client-certificate-data": data[1], "client-key-data": data[2]}}},
		"contexts": []object{{"name": context, "context": object{"cluster": context, "user": name}}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return state.WriteFile(path, append(b, '\n'), 0o600)
}

// WriteSigningKey makes the pair of keys that service account tokens are signed
// and checked with, if there is none.
func WriteSigningKey(keyFile, publicFile string) error {
	if exists(keyFile) && exists(publicFile) {
		return nil
	}
	key, err := writeKey(keyFile)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return err
	}
	return state.WriteFile(publicFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644)
}

func writeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, state.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
