// The lifecycle of snapshots with containerd's own snapshotters, as a library: no daemon, no gRPC, and not the
// database of namespaces that containerd puts in front. scripts/lifecycle/lifecycle.rs does the same with plywood; both make
// the same snapshots, in the same order, and print the same lines. run.py compares them.
//
//	containerd fill    -root DIR -backend overlay|native|btrfs -snapshots N
//	containerd measure -root DIR -backend ...                  -snapshots N [-seconds S] [-samples N] [-removal sync|async]
//
// Durability: the rows are in bbolt, which syncs at each commit. Neither new names of directories nor what is in a
// snapshot is synced.
//
// It is built in GOPATH mode against Debian's packages: see run.py.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/native"
	"github.com/containerd/containerd/snapshots/overlay"
	"github.com/containerd/containerd/snapshots/storage"
)

const (
	refLabel = "containerd.io/snapshot.ref"
	gcLabel  = "containerd.io/gc.root"
	// Numbers of snapshots that are made while it is measured begin here.
	firstMeasured = 1_000_000_000
	// Rows that fill puts into one transaction.
	fillBatch = 1000
	// Calls that are made even if there is no time left.
	fewestCalls = 20
	mostLists   = 5
)

type settings struct {
	root, backend, removal string
	snapshots, samples     uint64
	seconds                float64
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "containerd:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return fmt.Errorf("say fill or measure")
	}
	var s settings
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&s.root, "root", "", "directory of the store")
	flags.StringVar(&s.backend, "backend", "overlay", "overlay, native or btrfs")
	flags.StringVar(&s.removal, "removal", "async", "whether overlay removes directories in the call (sync) or at cleanup (async, as containerd does)")
	flags.Uint64Var(&s.snapshots, "snapshots", 10, "committed snapshots in the store")
	flags.Uint64Var(&s.samples, "samples", 1000, "calls of each kind, at most")
	flags.Float64Var(&s.seconds, "seconds", 1, "time for all of them")
	if err := flags.Parse(os.Args[2:]); err != nil {
		return err
	}
	switch {
	case s.root == "" || s.snapshots == 0 || s.samples == 0:
		return fmt.Errorf("-root, and at least one snapshot and one sample are needed")
	case os.Args[1] == "fill":
		return fill(&s)
	case os.Args[1] == "measure":
		return measure(&s)
	}
	return fmt.Errorf("%s: say fill or measure", os.Args[1])
}

func open(s *settings) (snapshots.Snapshotter, error) {
	switch s.backend {
	case "overlay":
		if s.removal == "async" {
			return overlay.NewSnapshotter(s.root, overlay.AsynchronousRemove)
		}
		return overlay.NewSnapshotter(s.root)
	case "native":
		return native.NewSnapshotter(s.root)
	case "btrfs":
		return openBtrfs(s.root)
	}
	return nil, fmt.Errorf("no such snapshotter: %s", s.backend)
}

// Names as containerd makes them: namespace, a number, and what the client says. They have to be those of
// scripts/lifecycle/lifecycle.rs, since their order decides which pages of a tree are touched.

// The n-th number of splitmix64.
func mixed(n uint64) uint64 {
	z := n * 0x9e3779b97f4a7c15
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

func digest(n uint64) string {
	return fmt.Sprintf("sha256:%016x%016x%016x%016x", mixed(4*n+1), mixed(4*n+2), mixed(4*n+3), mixed(4*n+4))
}

func nameOf(n uint64) string { return fmt.Sprintf("default/%d/%s", n, digest(n)) }

func keyOf(n uint64) string { return fmt.Sprintf("default/%d/extract-%08x", n, uint32(mixed(n))) }

func labelsOf(n uint64) snapshots.Opt {
	return snapshots.WithLabels(map[string]string{refLabel: digest(n)})
}

// ---------------------------------------------------------------------------------------------------------------
// fill
// ---------------------------------------------------------------------------------------------------------------

// fill makes a store of a base with one file, and children on it. The children are written in large transactions
// with the functions that the snapshotters themselves use; where a directory is more than a directory (btrfs), in
// the ordinary way.
func fill(s *settings) error {
	ctx := context.Background()
	sn, err := open(s)
	if err != nil {
		return err
	}
	if _, err := sn.Prepare(ctx, keyOf(0), ""); err != nil {
		return err
	}
	if err := change(ctx, s, sn, keyOf(0)); err != nil {
		return err
	}
	if err := sn.Commit(ctx, nameOf(0), keyOf(0), labelsOf(0)); err != nil {
		return err
	}
	if s.backend == "btrfs" {
		for n := uint64(1); n < s.snapshots; n++ {
			if _, err := sn.Prepare(ctx, keyOf(n), nameOf(0)); err != nil {
				return err
			}
			if err := sn.Commit(ctx, nameOf(n), keyOf(n), labelsOf(n)); err != nil {
				return err
			}
		}
		return sn.Close()
	}
	if err := sn.Close(); err != nil {
		return err
	}
	ms, err := storage.NewMetaStore(filepath.Join(s.root, "metadata.db"))
	if err != nil {
		return err
	}
	for n := uint64(1); n < s.snapshots; n += fillBatch {
		if err := fillSome(ctx, s, ms, n, min(n+fillBatch, s.snapshots)); err != nil {
			return err
		}
	}
	return ms.Close()
}

func min(a, b uint64) uint64 {
	if a < b {
		return a
	}
	return b
}

func fillSome(ctx context.Context, s *settings, ms *storage.MetaStore, from, to uint64) error {
	ctx, t, err := ms.TransactionContext(ctx, true)
	if err != nil {
		return err
	}
	for n := from; n < to; n++ {
		if err := fillOne(ctx, s, n); err != nil {
			t.Rollback()
			return err
		}
	}
	return t.Commit()
}

func fillOne(ctx context.Context, s *settings, n uint64) error {
	made, err := storage.CreateSnapshot(ctx, snapshots.KindActive, keyOf(n), nameOf(0))
	if err != nil {
		return err
	}
	usage := snapshots.Usage{Size: 8192, Inodes: 2}
	if _, err := storage.CommitActive(ctx, keyOf(n), nameOf(n), usage, labelsOf(n)); err != nil {
		return err
	}
	dir := filepath.Join(s.root, "snapshots", made.ID)
	if s.backend == "native" {
		if err := os.Mkdir(dir, 0755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "file"), content, 0644)
	}
	if err := os.Mkdir(dir, 0700); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "fs"), 0755); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(dir, "work"), 0711)
}

var content = bytes.Repeat([]byte("content\n"), 512)

// change puts one file into an active snapshot, as if somebody had mounted it.
func change(ctx context.Context, s *settings, sn snapshots.Snapshotter, key string) error {
	dir, err := upperOf(ctx, s, sn, key)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "file"), content, 0644)
}

// upperOf is the directory that takes the changes.
func upperOf(ctx context.Context, s *settings, sn snapshots.Snapshotter, key string) (string, error) {
	if s.backend == "btrfs" {
		// The mount names a subvolume by its number; but there is only one active snapshot at a time here.
		entries, err := os.ReadDir(filepath.Join(s.root, "active"))
		if err != nil {
			return "", err
		}
		if len(entries) != 1 {
			return "", fmt.Errorf("%d active snapshots instead of one", len(entries))
		}
		return filepath.Join(s.root, "active", entries[0].Name()), nil
	}
	mounts, err := sn.Mounts(ctx, key)
	if err != nil {
		return "", err
	}
	for _, option := range mounts[0].Options {
		if strings.HasPrefix(option, "upperdir=") {
			return strings.TrimPrefix(option, "upperdir="), nil
		}
	}
	return mounts[0].Source, nil
}

// ---------------------------------------------------------------------------------------------------------------
// measure
// ---------------------------------------------------------------------------------------------------------------

// clocks has the time of each call, by operation.
type clocks map[string][]time.Duration

func (c clocks) time(operation string, call func() error) error {
	start := time.Now()
	err := call()
	c[operation] = append(c[operation], time.Since(start))
	if err != nil {
		return fmt.Errorf("%s: %w", operation, err)
	}
	return nil
}

func measure(s *settings) error {
	ctx, c := context.Background(), clocks{}
	var sn snapshots.Snapshotter
	err := c.time("open", func() (err error) {
		// The database is opened by the first call.
		if sn, err = open(s); err == nil {
			_, err = sn.Stat(ctx, nameOf(0))
		}
		return err
	})
	if err != nil {
		return err
	}
	if _, err := list(ctx, sn, s.snapshots); err != nil {
		return err
	}
	deadline := time.Now().Add(time.Duration(s.seconds * float64(time.Second)))
	for i := uint64(0); i < s.samples && (i < fewestCalls || time.Now().Before(deadline)); i++ {
		if err := life(ctx, s, sn, c, i); err != nil {
			return err
		}
	}
	deadline = time.Now().Add(time.Duration(s.seconds * float64(time.Second)))
	for i := 0; i < mostLists && (i == 0 || time.Now().Before(deadline)); i++ {
		took, err := list(ctx, sn, s.snapshots)
		if err != nil {
			return err
		}
		c["list"] = append(c["list"], took)
	}
	if cleaner, ok := sn.(snapshots.Cleaner); ok {
		start := time.Now()
		if err := cleaner.Cleanup(ctx); err != nil {
			return err
		}
		whole := time.Since(start)
		if err := c.time("cleanup", func() error { return cleaner.Cleanup(ctx) }); err != nil {
			return err
		}
		// What remove left to do, for each snapshot: without the look at all the others.
		if left := whole - c["cleanup"][0]; s.removal == "async" && left > 0 {
			c["discard"] = append(c["discard"], left/time.Duration(len(c["remove"])))
		}
	}
	if err := sn.Close(); err != nil {
		return err
	}
	return report(s, c)
}

// life is one snapshot from prepare to remove; so there are always as many as -snapshots says, or one more.
func life(ctx context.Context, s *settings, sn snapshots.Snapshotter, c clocks, i uint64) error {
	n := firstMeasured + i
	key, name := keyOf(n), nameOf(n)
	parent, other := nameOf(mixed(3*i)%s.snapshots), nameOf(mixed(3*i+1)%s.snapshots)
	steps := []struct {
		operation string
		call      func() error
	}{
		{"prepare", func() error {
			mounts, err := sn.Prepare(ctx, key, parent, labelsOf(n))
			return some(len(mounts), err)
		}},
		{"mounts", func() error {
			mounts, err := sn.Mounts(ctx, key)
			return some(len(mounts), err)
		}},
		{"stat", func() error {
			info, err := sn.Stat(ctx, other)
			if err == nil && info.Labels[refLabel] == "" {
				err = fmt.Errorf("no label")
			}
			return err
		}},
		{"update", func() error {
			label := map[string]string{gcLabel: fmt.Sprintf("%020d", i)}
			_, err := sn.Update(ctx, snapshots.Info{Name: other, Labels: label}, "labels."+gcLabel)
			return err
		}},
		{"", func() error { return change(ctx, s, sn, key) }},
		{"commit", func() error { return sn.Commit(ctx, name, key, labelsOf(n)) }},
		{"remove", func() error { return sn.Remove(ctx, name) }},
	}
	for _, step := range steps {
		if step.operation == "" {
			if err := step.call(); err != nil {
				return err
			}
		} else if err := c.time(step.operation, step.call); err != nil {
			return err
		}
	}
	return nil
}

func some(count int, err error) error {
	if err == nil && count == 0 {
		return fmt.Errorf("no mounts")
	}
	return err
}

// list reads everything that is known of everything.
func list(ctx context.Context, sn snapshots.Snapshotter, expected uint64) (time.Duration, error) {
	var infos []snapshots.Info
	start := time.Now()
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		infos = append(infos, info)
		return nil
	})
	took := time.Since(start)
	if err == nil && uint64(len(infos)) != expected {
		err = fmt.Errorf("list: %d snapshots instead of %d", len(infos), expected)
	}
	return took, err
}

type line struct {
	System       string  `json:"system"`
	Backend      string  `json:"backend"`
	Durability   string  `json:"durability"`
	SyncOnCommit bool    `json:"sync_on_commit"`
	SyncOnCreate bool    `json:"sync_on_create"`
	Removal      string  `json:"removal"`
	Snapshots    uint64  `json:"snapshots"`
	Operation    string  `json:"operation"`
	Calls        int     `json:"calls"`
	PerSecond    float64 `json:"per_second"`
	P50          float64 `json:"p50_us"`
	P99          float64 `json:"p99_us"`
}

func report(s *settings, c clocks) error {
	removal := s.removal
	if s.backend != "overlay" {
		removal = "sync" // the others have no choice
	}
	out := json.NewEncoder(os.Stdout)
	for operation, took := range c {
		sort.Slice(took, func(a, b int) bool { return took[a] < took[b] })
		var sum time.Duration
		for _, t := range took {
			sum += t
		}
		at := func(part float64) float64 {
			return float64(took[int(part*float64(len(took)-1)+0.5)].Nanoseconds()) / 1e3
		}
		err := out.Encode(line{
			System: "containerd", Backend: s.backend, Durability: "full", Removal: removal, Snapshots: s.snapshots,
			Operation: operation, Calls: len(took), PerSecond: float64(len(took)) / sum.Seconds(),
			P50: at(0.5), P99: at(0.99),
		})
		if err != nil {
			return err
		}
	}
	return nil
}
