// Writes what containerd's walking differ makes of two directories to its standard output.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/archive"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: walking_diff BASE NEW")
		os.Exit(2)
	}
	out := bufio.NewWriter(os.Stdout)
	err := archive.WriteDiff(context.Background(), out, os.Args[1], os.Args[2])
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
