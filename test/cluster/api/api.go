// Package api asks a cluster's API server the few things that starting it needs.
//
// It is plain HTTP rather than client-go, which would take longer to compile than
// everything else in this command.
package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// A Client calls one API server.
type Client struct {
	base string
	http *http.Client
}

// A Node is what is read of a node.
type Node struct {
	Name  string
	Ready bool
	// Version and Runtime are those of its kubelet and container runtime.
	Version string
	Runtime string
}

// New returns a client of the server at base, such as "https://10.192.0.1:24002".
func New(base string, settings *tls.Config) *Client {
	return &Client{base: base, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: settings, ForceAttemptHTTP2: true},
		Timeout:   10 * time.Second,
	}}
}

// Ready returns nil when the server says that it is ready.
func (c *Client) Ready(ctx context.Context) error {
	_, err := c.do(ctx, http.MethodGet, "/readyz", nil)
	return err
}

// Version returns the server's version.
func (c *Client) Version(ctx context.Context) (string, error) {
	b, err := c.do(ctx, http.MethodGet, "/version", nil)
	if err != nil {
		return "", err
	}
	var v struct{ GitVersion string }
	err = json.Unmarshal(b, &v)
	return v.GitVersion, err
}

// Exists returns nil when there is something at the path.
func (c *Client) Exists(ctx context.Context, path string) error {
	_, err := c.do(ctx, http.MethodGet, path, nil)
	return err
}

// Create posts an object. One that is already there is left as it is.
func (c *Client) Create(ctx context.Context, path string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, path, body)
	return err
}

// Nodes lists the nodes that kwok pretends (fake) or those with a kubelet.
func (c *Client) Nodes(ctx context.Context, fake bool) ([]Node, error) {
	operator := "!="
	if fake {
		operator = "="
	}
	b, err := c.do(ctx, http.MethodGet, "/api/v1/nodes?labelSelector=type"+operator+"kwok", nil)
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Status struct {
				Conditions []struct {
					Type   string `json:"type"`
					Status string `json:"status"`
				} `json:"conditions"`
				NodeInfo struct {
					KubeletVersion          string `json:"kubeletVersion"`
					ContainerRuntimeVersion string `json:"containerRuntimeVersion"`
				} `json:"nodeInfo"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("reading the list of nodes: %w", err)
	}
	nodes := make([]Node, 0, len(list.Items))
	for _, item := range list.Items {
		info := item.Status.NodeInfo
		n := Node{Name: item.Metadata.Name, Version: info.KubeletVersion, Runtime: info.ContainerRuntimeVersion}
		for _, c := range item.Status.Conditions {
			n.Ready = n.Ready || c.Type == "Ready" && c.Status == "True"
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // read only
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	created := method == http.MethodPost && resp.StatusCode == http.StatusConflict
	if resp.StatusCode >= http.StatusMultipleChoices && !created {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, nil
}
