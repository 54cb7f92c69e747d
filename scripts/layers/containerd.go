// What containerd does with layers, for the benchmark: its walking differ, and its applier.
//
//	containerd diff BASE NEW >LAYER
//	containerd apply ROOT <LAYER
package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"

	"github.com/containerd/containerd/archive"
)

func run() error {
	ctx := context.Background()
	switch {
	case len(os.Args) == 4 && os.Args[1] == "diff":
		out := bufio.NewWriterSize(os.Stdout, 1<<20)
		if err := archive.WriteDiff(ctx, out, os.Args[2], os.Args[3]); err != nil {
			return err
		}
		return out.Flush()
	case len(os.Args) == 3 && os.Args[1] == "apply":
		in, err := gzip.NewReader(bufio.NewReaderSize(os.Stdin, 1<<20))
		if err != nil {
			return err
		}
		if _, err := archive.Apply(ctx, os.Args[2], in); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, in)
		return err
	}
	return fmt.Errorf("usage: containerd diff BASE NEW | containerd apply ROOT")
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
