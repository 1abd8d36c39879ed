package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/ottoscaler/ottoscaler/internal/dev/image"
	"github.com/ottoscaler/ottoscaler/internal/dev/source"
)

type imageCommand struct {
	Tag string `default:"dev" help:"Tag of the images."`
	Dir string `default:"build/images" help:"Folder for the archives." type:"path"`
}

// Run makes both images, the product's and the sample agent's.
func (c *imageCommand) Run(ctx context.Context) error {
	root, err := source.Root(ctx)
	if err != nil {
		return err
	}
	for name, build := range map[string]func(context.Context, string, string, string) (string, error){
		"ottoscaler.tar": image.Ottoscaler,
		"otto-agent.tar": image.Agent,
	} {
		file := filepath.Join(c.Dir, name)
		digest, err := build(ctx, root, c.Tag, file)
		if err != nil {
			return err
		}
		fmt.Println(file, digest)
	}
	return nil
}
