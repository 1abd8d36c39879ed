package link

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A hintedError is an error and what can be done about it. gRPC keeps only the
// text of what breaks a connection, so the hint is in the text.
type hintedError struct {
	err  error
	hint string
}

func (e *hintedError) Error() string { return e.err.Error() + " (" + e.hint + ")" }
func (e *hintedError) Unwrap() error { return e.err }

func hinted(err error, hint string) error {
	if hint == "" {
		return err
	}
	return &hintedError{err, hint}
}

// handshakeHint says what may help against a TLS handshake that failed.
func (o *Options) handshakeHint(err error) string {
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "does the server speak plaintext? Then LOG_SERVER_TLS=off; or the port is another's"
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		if o.CAFile == "" {
			return "LOG_SERVER_CA_FILE names the authority that has signed the server's certificate"
		}
		return "the server's certificate is not signed by those in LOG_SERVER_CA_FILE, " + o.CAFile
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return "LOG_SERVER_NAME must be a name in the server's certificate: " + strings.Join(name.Certificate.DNSNames, ", ")
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "renew the server's certificate, or mend this machine's clock"
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return o.alertHint(alert)
	}
	if ended(err) {
		return "the server ended the handshake: does it speak TLS on this port?"
	}
	return ""
}

// Alerts of RFC 8446, section 6.
const (
	alertHandshakeFailure    tls.AlertError = 40
	alertBadCertificate      tls.AlertError = 42
	alertCertificateRevoked  tls.AlertError = 44
	alertCertificateExpired  tls.AlertError = 45
	alertCertificateUnknown  tls.AlertError = 46
	alertUnknownAuthority    tls.AlertError = 48
	alertCertificateRequired tls.AlertError = 116
)

// alertHint says what may help when the server has refused us.
func (o *Options) alertHint(alert tls.AlertError) string {
	switch alert {
	case alertHandshakeFailure, alertBadCertificate, alertCertificateRequired:
		if o.CertFile == "" {
			return "the server wants a client certificate: LOG_SERVER_CERT_FILE and LOG_SERVER_KEY_FILE"
		}
		return "the server does not take the client certificate of LOG_SERVER_CERT_FILE"
	case alertCertificateExpired, alertCertificateRevoked:
		return "renew the client certificate of LOG_SERVER_CERT_FILE"
	case alertUnknownAuthority, alertCertificateUnknown:
		return "the server does not know who signed the client certificate of LOG_SERVER_CERT_FILE"
	}
	return ""
}

// greetingHint looks at the first bytes of the server. It returns "" if they may be HTTP/2.
func (o *Options) greetingHint(first []byte) string {
	switch {
	case first[0] == 0x15 || first[0] == 0x16: // a TLS alert or handshake; no HTTP/2 server begins with 1.3 MB
		return "does the server speak TLS? Then LOG_SERVER_TLS=on"
	case bytes.HasPrefix(first, []byte("HTTP/1")):
		return "it speaks HTTP/1: LOG_SERVER_ADDR must be the gRPC port, and a proxy before it must speak HTTP/2"
	}
	return ""
}

// silenceHint says what may help when a connection ends before the server has said a word.
func (o *Options) silenceHint(err error) string {
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return o.alertHint(alert) // with TLS 1.3, the server looks at our certificate after the handshake
	}
	switch {
	case !o.TLS:
		return "does the server speak TLS? Then LOG_SERVER_TLS=on"
	case o.CertFile == "":
		return "does the server want a client certificate? Then LOG_SERVER_CERT_FILE and LOG_SERVER_KEY_FILE"
	default:
		return "does the server take the client certificate of LOG_SERVER_CERT_FILE?"
	}
}

// explain adds to the error of a call what can be done about it.
func (l *Link) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return hinted(err, l.options.callHint(status.Code(err)))
}

// callHint says what may help against a call's error.
func (o *Options) callHint(code codes.Code) string {
	switch code {
	case codes.Unauthenticated:
		if o.TokenFile == "" {
			return "the server wants a token: LOG_SERVER_TOKEN_FILE"
		}
		return "the server does not take the token of LOG_SERVER_TOKEN_FILE, " + o.TokenFile + ", which is read for each call"
	case codes.PermissionDenied:
		return "the server knows who we are; whoever runs it must allow us to send logs"
	case codes.Unimplemented:
		if o.Gzip {
			return "is it a log server? Then it may not know gzip: LOG_SERVER_COMPRESSION=none"
		}
		return "is it a log server? LOG_SERVER_ADDR must be one that serves ottoscaler.logs.v1"
	case codes.Unavailable:
		if proxy := o.proxy(); proxy != nil {
			return "by the proxy " + proxy.Host + " of HTTPS_PROXY; NO_PROXY lists what needs none"
		}
	}
	return ""
}

// proxy returns the proxy that gRPC goes through, which decides the same way.
func (o *Options) proxy() *url.URL {
	name, port := host(o.Addr)
	if name == "" {
		return nil
	}
	address := name
	if port != "" {
		address += ":" + port
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	if err != nil {
		return nil
	}
	return proxy
}

// windowHint says what may help when the server's receive window limits the rate.
func (l *Link) windowHint() string {
	hint := fmt.Sprintf("raise LOG_SERVER_CONNECTIONS (now %d), or widen the server's HTTP/2 receive window", len(l.conns))
	if !l.options.Gzip {
		return "LOG_SERVER_COMPRESSION=gzip (now none); or " + hint
	}
	return hint
}
