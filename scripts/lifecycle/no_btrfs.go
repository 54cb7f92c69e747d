//go:build no_btrfs

package main

import (
	"errors"

	"github.com/containerd/containerd/snapshots"
)

func openBtrfs(string) (snapshots.Snapshotter, error) {
	return nil, errors.New("built without btrfs, as the C header btrfs/ioctl.h of libbtrfs-dev or a C compiler is missing")
}
