package main

import (
	"context"
	"fmt"

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
	built, err := image.Build(ctx, root, c.Dir, c.Tag, image.Ottoscaler, image.Agent)
	if err != nil {
		return err
	}
	for _, b := range built {
		fmt.Println(b.Archive, b.Digest)
	}
	return nil
}
