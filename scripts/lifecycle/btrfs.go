//go:build !no_btrfs

package main

import (
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/btrfs"
)

// openBtrfs needs a root directory that is a mount point.
func openBtrfs(root string) (snapshots.Snapshotter, error) {
	return btrfs.NewSnapshotter(root)
}
