package redis

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Encrypted is a server that also listens for TLS, and asks clients for a certificate.
type Encrypted struct {
	*Server
	// TLSPort that it listens on.
	TLSPort int
	// CAFile, CertFile and KeyFile are an authority, and a certificate of it for both ends.
	CAFile, CertFile, KeyFile string

	dir string
}

// StartEncrypted starts one.
func StartEncrypted(ctx context.Context, opts Options) (e *Encrypted, err error) {
	e = &Encrypted{}
	if e.dir, err = os.MkdirTemp("", "ottoscaler-tls-"); err != nil {
		return nil, fmt.Errorf("starting an encrypted redis-server: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Stop())
		}
	}()
	e.CAFile, e.CertFile, e.KeyFile = filepath.Join(e.dir, "ca.pem"), filepath.Join(e.dir, "cert.pem"), filepath.Join(e.dir, "key.pem")
	if err := e.certify(); err != nil {
		return e, fmt.Errorf("starting an encrypted redis-server: making certificates: %w", err)
	}
	if e.TLSPort, err = freePort(ctx, []string{"127.0.0.1"}); err != nil {
		return e, err
	}
	opts.Config = append([]string{
		"tls-port " + strconv.Itoa(e.TLSPort), "tls-ca-cert-file " + e.CAFile, "tls-cert-file " + e.CertFile, "tls-key-file " + e.KeyFile,
	}, opts.Config...)
	e.Server, err = Start(ctx, opts)
	return e, err
}

// certify makes the files.
func (e *Encrypted) certify() error {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	write := func(file, kind string, der []byte) error {
		return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	return errors.Join(write(e.CAFile, "CERTIFICATE", caDER), write(e.CertFile, "CERTIFICATE", der), write(e.KeyFile, "EC PRIVATE KEY", keyDER))
}

// Stop ends the server and removes the files.
func (e *Encrypted) Stop() error {
	var err error
	if e.Server != nil {
		err = e.Server.Stop()
	}
	return errors.Join(err, os.RemoveAll(e.dir))
}
