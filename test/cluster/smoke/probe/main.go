// Command probe is what the containers of the smoke test run: its first argument
// picks what to do.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// account is where the kubelet puts a service account's token.
const account = "/var/run/secrets/kubernetes.io/serviceaccount"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	code, err := run(ctx, os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Println("probe:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, what string, args []string) (code int, err error) {
	switch what {
	case "count": // count LINES EXIT-CODE
		return count(ctx, args[0], args[1])
	case "serve": // serve TEXT: on :8080, until told to stop; then last words
		return 0, serve(ctx, args[0])
	case "get": // get URL
		return 0, get(ctx, http.DefaultClient, args[0], "")
	case "api": // api: asks the API server for its version as the service account
		return 0, askAPI(ctx)
	}
	return 0, fmt.Errorf("no such task: %q", what)
}

func count(ctx context.Context, lines, code string) (int, error) {
	n, err := strconv.Atoi(lines)
	if err != nil {
		return 0, err
	}
	for i := range n {
		fmt.Println("line", i+1)
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return strconv.Atoi(code)
}

func serve(ctx context.Context, text string) error {
	s := &http.Server{Addr: ":8080", ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, text) // the client sees it when this fails
		})}
	failed := make(chan error, 1)
	go func() { failed <- s.ListenAndServe() }()
	fmt.Println("serving")
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	time.Sleep(500 * time.Millisecond) // a grace period that is used
	fmt.Println("last words")
	return s.Close()
}

// get prints what the URL answers. It tries for ten seconds: kube-proxy may not
// have heard of a new Service yet.
func get(ctx context.Context, client *http.Client, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var last error
	for ctx.Err() == nil {
		if last = getOnce(ctx, client, url, token); last == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return last
}

func getOnce(ctx context.Context, client *http.Client, url, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(resp.Body)
	fmt.Printf("%s: %s\n", resp.Status, b)
	return errors.Join(err, resp.Body.Close())
}

func askAPI(ctx context.Context) error {
	token, err := os.ReadFile(filepath.Join(account, "token"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	host := net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	return get(ctx, client, "https://"+host+"/api", string(token))
}
