// containerd's own tests of snapshotters, through the proxy by which containerd itself would talk to `plywood serve`.
//
// Each test gets a daemon and a store of its own. PLYWOOD is the program, PLYWOOD_BACKEND what the store is kept by,
// PLYWOOD_MOUNTS who mounts FUSE snapshots, PLYWOOD_STORES a directory for the stores (default: that of each test).
//
// It is built in GOPATH mode against Debian's packages: see scripts/containerd-suite.
package suite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

func TestPlywood(t *testing.T) {
	testsuite.SnapshotterSuite(t, "plywood-"+os.Getenv("PLYWOOD_BACKEND"), open)
}

// open starts a daemon for one test; the function that it returns ends it, and fails if anything is left.
func open(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	store := filepath.Join(root, "store")
	if stores := os.Getenv("PLYWOOD_STORES"); stores != "" {
		dir, err := os.MkdirTemp(stores, "store-")
		if err != nil {
			return nil, nil, err
		}
		store = dir
	}
	socket := filepath.Join(root, "s")
	base := []string{"--root", store, "--backend", os.Getenv("PLYWOOD_BACKEND"), "--log", "warn"}
	daemon := exec.Command(os.Getenv("PLYWOOD"), append(base, "serve", "--address", socket, "--mounts", os.Getenv("PLYWOOD_MOUNTS"))...)
	daemon.Stdout, daemon.Stderr = os.Stdout, os.Stderr
	if err := daemon.Start(); err != nil {
		return nil, nil, err
	}
	conn, err := connect(ctx, socket)
	if err != nil {
		daemon.Process.Kill()
		daemon.Wait()
		return nil, nil, err
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "plywood")
	end := func() error {
		if err := removeAll(ctx, snapshotter); err != nil {
			return fmt.Errorf("remove everything: %w", err)
		}
		conn.Close()
		daemon.Process.Signal(syscall.SIGTERM)
		if err := daemon.Wait(); err != nil {
			return fmt.Errorf("the daemon: %w", err)
		}
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			return fmt.Errorf("the daemon left its socket: %v", err)
		}
		if out, err := exec.Command(os.Getenv("PLYWOOD"), append(base, "check")...).CombinedOutput(); err != nil {
			return fmt.Errorf("check: %w: %s", err, out)
		}
		for _, dir := range []string{"snapshots", "mnt"} {
			left, err := os.ReadDir(filepath.Join(store, dir))
			if err != nil || len(left) > 0 {
				return fmt.Errorf("left in %s: %v %v", dir, left, err)
			}
		}
		return nil
	}
	return snapshotter, end, nil
}

func connect(ctx context.Context, socket string) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return grpc.DialContext(ctx, dialer.DialAddress(socket), grpc.WithBlock(),
		grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))
}

// removeAll does what containerd does to what it does not know: children first, then the rest, then the remains.
func removeAll(ctx context.Context, snapshotter snapshots.Snapshotter) error {
	for {
		parents, all := map[string]bool{}, []string{}
		err := snapshotter.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			parents[info.Parent] = true
			all = append(all, info.Name)
			return nil
		})
		if err != nil {
			return err
		}
		if len(all) == 0 {
			return snapshotter.(snapshots.Cleaner).Cleanup(ctx)
		}
		for _, name := range all {
			if parents[name] {
				continue
			}
			if err := snapshotter.Remove(ctx, name); err != nil {
				return err
			}
		}
	}
}

// Whoever is refused is told so by its class, as Go programs see it.
func TestMain(m *testing.M) {
	for _, name := range []string{"PLYWOOD", "PLYWOOD_BACKEND", "PLYWOOD_MOUNTS"} {
		if strings.TrimSpace(os.Getenv(name)) == "" {
			fmt.Fprintln(os.Stderr, name, "is not set: start this by scripts/containerd-suite")
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}
