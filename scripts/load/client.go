package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/api/types"
	ptypes "github.com/gogo/protobuf/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A client has snapshots of its own, of which it knows all, since nobody else knows their names; and it meets the others
// at a few names that all of them make, commit and remove. Those are accounted for: what was made and not taken away has to
// be there in the end, once.
type client struct {
	*world
	number int
	rng    *rand.Rand
	api    snapshotsapi.SnapshotsClient
	own    []*snapshot
	names  int
	times  map[string][]time.Duration
	refuse int
}

// What a client knows of a snapshot.
type snapshot struct {
	name     string
	kind     snapshotsapi.Kind
	parent   *snapshot
	children int
	labels   map[string]string
	mounts   []*types.Mount
	written  bool
}

// Layers below it.
func (s *snapshot) depth() int {
	if s.parent == nil {
		return 0
	}
	return s.parent.depth() + 1
}

const (
	active    = snapshotsapi.KindActive
	view      = snapshotsapi.KindView
	committed = snapshotsapi.KindCommitted

	mine  = "load/client"
	fixed = "containerd.io/gc.root"
	// Layers that somebody piles up at most, beside those that all have.
	mostLayers = 12
	fileBytes  = 4096
)

// The proportions of calls in a run of containerd and one of BuildKit, with unpacking, running, committing, building and
// collecting garbage; updates are more than there were, to be worth a number.
var mix = []struct {
	weight int
	call   func(*client) error
}{
	{150, (*client).prepare}, {35, (*client).view}, {184, (*client).remove}, {170, (*client).mountsOf},
	{116, (*client).commit}, {167, (*client).stat}, {56, (*client).usage}, {12, (*client).update},
	{30, (*client).list}, {30, (*client).cleanup},
	// Calls that are to be refused, and those where somebody else may be quicker.
	{40, (*client).refused}, {60, (*client).contend},
}

// next makes one call.
func (c *client) next() error {
	if len(c.own) >= c.most {
		return c.remove()
	}
	sum := 0
	for _, m := range mix {
		sum += m.weight
	}
	at := c.rng.Intn(sum)
	for _, m := range mix {
		if at < m.weight {
			return m.call(c)
		}
		at -= m.weight
	}
	panic("the weights are less than their sum")
}

// timed makes a call, whose outcome has to be one of `expected`.
func (c *client) timed(operation string, call func(context.Context) error, expected ...codes.Code) (codes.Code, error) {
	ctx, cancel := context.WithTimeout(c.context, time.Minute)
	defer cancel()
	start := time.Now()
	err := call(ctx)
	c.times[operation] = append(c.times[operation], time.Since(start))
	c.count()
	code := status.Code(err)
	for _, e := range expected {
		if code == e {
			return code, nil
		}
	}
	return code, fmt.Errorf("%s: answered %v instead of %v: %v", operation, code, expected, err)
}

// pick is one of the client's snapshots that is as wanted, or nil.
func (c *client) pick(wanted func(*snapshot) bool) *snapshot {
	var found []*snapshot
	for _, s := range c.own {
		if wanted(s) {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[c.rng.Intn(len(found))]
}

func anyKind(*snapshot) bool         { return true }
func isActive(s *snapshot) bool      { return s.kind == active }
func isCommitted(s *snapshot) bool   { return s.kind == committed }
func isMountable(s *snapshot) bool   { return s.kind != committed }
func isLeaf(s *snapshot) bool        { return s.children == 0 }
func isParent(s *snapshot) bool      { return s.children > 0 }
func isFoundation(s *snapshot) bool  { return s.kind == committed && s.depth() < mostLayers }
func (c *client) nothingFits() error { return c.prepare() }

func (c *client) newName(what string) string {
	c.names++
	return fmt.Sprintf("load/%d/%s-%d", c.number*1_000_000+c.names, what, c.rng.Uint32())
}

func (c *client) newLabels() map[string]string {
	return map[string]string{mine: fmt.Sprint("c", c.number), fixed: "2024-01-01T00:00:00Z", "n": fmt.Sprint(c.names)}
}

// parent is what a new snapshot stands on: what all have, something of its own, or nothing.
func (c *client) parent() *snapshot {
	switch own := c.pick(isFoundation); {
	case c.rng.Intn(8) == 0:
		return nil
	case own != nil && c.rng.Intn(2) == 0:
		return own
	default:
		return c.base[c.rng.Intn(len(c.base))]
	}
}

func nameOf(s *snapshot) string {
	if s == nil {
		return ""
	}
	return s.name
}

func (c *client) prepare() error { return c.make(active, "prepare", "extract") }

func (c *client) view() error { return c.make(view, "view", "view") }

func (c *client) make(kind snapshotsapi.Kind, operation, what string) error {
	s := &snapshot{name: c.newName(what), kind: kind, parent: c.parent(), labels: c.newLabels()}
	_, err := c.timed(operation, func(ctx context.Context) (err error) {
		s.mounts, err = c.create(ctx, kind, s.name, nameOf(s.parent), s.labels)
		return err
	}, codes.OK)
	if err != nil {
		return err
	}
	if err := checkMounts(s); err != nil {
		return fmt.Errorf("%s %q on %d layers: %w", operation, s.name, s.depth(), err)
	}
	if c.isBase(s.parent) {
		// Others do so at the same time; nobody removes it.
	} else if s.parent != nil {
		s.parent.children++
	}
	c.own = append(c.own, s)
	if kind == active && c.rng.Intn(2) == 0 {
		return s.write()
	}
	return nil
}

func (c *client) create(ctx context.Context, kind snapshotsapi.Kind, key, parent string, labels map[string]string) ([]*types.Mount, error) {
	if kind == view {
		answer, err := c.api.View(ctx, &snapshotsapi.ViewSnapshotRequest{Snapshotter: c.snapshotter, Key: key, Parent: parent, Labels: labels})
		if err != nil {
			return nil, err
		}
		return answer.Mounts, nil
	}
	answer, err := c.api.Prepare(ctx, &snapshotsapi.PrepareSnapshotRequest{Snapshotter: c.snapshotter, Key: key, Parent: parent, Labels: labels})
	if err != nil {
		return nil, err
	}
	return answer.Mounts, nil
}

// write changes an active snapshot as somebody would who has mounted it.
func (s *snapshot) write() error {
	s.written = true
	dir := s.mounts[0].Source
	if upper := option(s.mounts[0], "upperdir="); upper != "" {
		dir = upper
	}
	return os.WriteFile(filepath.Join(dir, "file"), make([]byte, fileBytes), 0o644)
}

func option(mount *types.Mount, prefix string) string {
	for _, option := range mount.Options {
		if strings.HasPrefix(option, prefix) {
			return strings.TrimPrefix(option, prefix)
		}
	}
	return ""
}

// checkMounts says whether mounts are those of such a snapshot: as many layers, and writable or not.
func checkMounts(s *snapshot) error {
	if len(s.mounts) != 1 {
		return fmt.Errorf("%d mounts", len(s.mounts))
	}
	mount, readOnly := s.mounts[0], false
	for _, option := range mount.Options {
		readOnly = readOnly || option == "ro"
	}
	if mount.Type == "bind" {
		if readOnly != (s.kind == view) {
			return fmt.Errorf("a bind mount with %v", mount.Options)
		}
		if status, err := os.Stat(mount.Source); err != nil || !status.IsDir() {
			return fmt.Errorf("a bind mount of no directory: %v", err)
		}
		return nil
	}
	lowers := 0
	if lower := option(mount, "lowerdir="); lower != "" {
		lowers = len(strings.Split(lower, ":"))
	}
	writable := option(mount, "upperdir=") != ""
	if lowers != s.depth() || writable != (s.kind == active) || readOnly && writable {
		return fmt.Errorf("a mount of type %s with %v", mount.Type, mount.Options)
	}
	return nil
}

func (c *client) mountsOf() error {
	s := c.pick(isMountable)
	if s == nil {
		return c.nothingFits()
	}
	var answer *snapshotsapi.MountsResponse
	_, err := c.timed("mounts", func(ctx context.Context) (err error) {
		answer, err = c.api.Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: c.snapshotter, Key: s.name})
		return err
	}, codes.OK)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(answer.Mounts, s.mounts) {
		return fmt.Errorf("mounts of %q: %v, and they were %v", s.name, answer.Mounts, s.mounts)
	}
	return nil
}

func (c *client) commit() error {
	s := c.pick(isActive)
	if s == nil {
		return c.nothingFits()
	}
	name, labels := c.newName("layer"), c.newLabels()
	_, err := c.timed("commit", func(ctx context.Context) error {
		_, err := c.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: c.snapshotter, Name: name, Key: s.name, Labels: labels})
		return err
	}, codes.OK)
	s.name, s.kind, s.labels, s.mounts = name, committed, labels, nil
	return err
}

func (c *client) remove() error {
	s := c.pick(isLeaf)
	if s == nil {
		return c.nothingFits()
	}
	_, err := c.timed("remove", func(ctx context.Context) error {
		_, err := c.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: c.snapshotter, Key: s.name})
		return err
	}, codes.OK)
	if s.parent != nil && !c.isBase(s.parent) {
		s.parent.children--
	}
	for i := range c.own {
		if c.own[i] == s {
			c.own = append(c.own[:i], c.own[i+1:]...)
			break
		}
	}
	return err
}

func (c *client) stat() error {
	s := c.pick(anyKind)
	if s == nil {
		s = c.base[c.rng.Intn(len(c.base))]
	}
	var answer *snapshotsapi.StatSnapshotResponse
	_, err := c.timed("stat", func(ctx context.Context) (err error) {
		answer, err = c.api.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: c.snapshotter, Key: s.name})
		return err
	}, codes.OK)
	if err != nil {
		return err
	}
	return checkInfo(&answer.Info, s)
}

func checkInfo(info *snapshotsapi.Info, s *snapshot) error {
	labels := info.Labels
	if len(labels) == 0 && len(s.labels) == 0 {
		labels = s.labels
	}
	same := info.Name == s.name && info.Parent == nameOf(s.parent) && info.Kind == s.kind && reflect.DeepEqual(labels, s.labels)
	if !same || info.CreatedAt.IsZero() || info.UpdatedAt.Before(info.CreatedAt) {
		return fmt.Errorf("what is told of %q, %v on %q with %v: %+v", s.name, s.kind, nameOf(s.parent), s.labels, info)
	}
	return nil
}

func (c *client) update() error {
	s := c.pick(anyKind)
	if s == nil {
		return c.nothingFits()
	}
	labels, wanted := map[string]string{}, map[string]string{}
	var mask *ptypes.FieldMask
	for key, value := range s.labels {
		wanted[key] = value
	}
	switch c.rng.Intn(3) {
	case 0: // one label, and none of the others
		labels["n"], wanted["n"] = "changed", "changed"
		mask = &ptypes.FieldMask{Paths: []string{"labels.n"}}
	case 1: // one label goes
		delete(wanted, "n")
		mask = &ptypes.FieldMask{Paths: []string{"labels.n"}}
	default: // all of them are new
		labels = c.newLabels()
		labels["again"] = "yes"
		wanted = labels
	}
	var answer *snapshotsapi.UpdateSnapshotResponse
	_, err := c.timed("update", func(ctx context.Context) (err error) {
		info := snapshotsapi.Info{Name: s.name, Labels: labels}
		answer, err = c.api.Update(ctx, &snapshotsapi.UpdateSnapshotRequest{Snapshotter: c.snapshotter, Info: info, UpdateMask: mask})
		return err
	}, codes.OK)
	if err != nil {
		return err
	}
	s.labels = wanted
	return checkInfo(&answer.Info, s)
}

func (c *client) usage() error {
	s := c.pick(anyKind)
	if s == nil {
		return c.nothingFits()
	}
	var answer *snapshotsapi.UsageResponse
	_, err := c.timed("usage", func(ctx context.Context) (err error) {
		answer, err = c.api.Usage(ctx, &snapshotsapi.UsageRequest{Snapshotter: c.snapshotter, Key: s.name})
		return err
	}, codes.OK)
	if err == nil && s.written && (answer.Size_ < fileBytes || answer.Inodes < 2) {
		err = fmt.Errorf("usage of %q, with a file of %d bytes: %+v", s.name, fileBytes, answer)
	}
	return err
}

// list is a walk: of everything, as the garbage collector does, or of what is the client's.
func (c *client) list() error {
	var filters []string
	if c.rng.Intn(2) == 0 {
		filters = []string{fmt.Sprintf("labels.%q==c%d", mine, c.number)}
	}
	var infos []snapshotsapi.Info
	_, err := c.timed("list", func(ctx context.Context) (err error) {
		infos, err = c.walk(ctx, filters...)
		return err
	}, codes.OK)
	if err != nil {
		return err
	}
	return c.checkList(infos, filters == nil)
}

func (c *client) walk(ctx context.Context, filters ...string) ([]snapshotsapi.Info, error) {
	stream, err := c.api.List(ctx, &snapshotsapi.ListSnapshotsRequest{Snapshotter: c.snapshotter, Filters: filters})
	if err != nil {
		return nil, err
	}
	var infos []snapshotsapi.Info
	for {
		block, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return infos, nil
		}
		if err != nil {
			return nil, err
		}
		infos = append(infos, block.Info...)
	}
}

// checkList says whether all of the client's snapshots are there, once, as they are, and nothing else that claims to be.
func (c *client) checkList(infos []snapshotsapi.Info, others bool) error {
	own := make(map[string]*snapshot, len(c.own))
	for _, s := range c.own {
		own[s.name] = s
	}
	seen := map[string]bool{}
	for i := range infos {
		info := &infos[i]
		if seen[info.Name] {
			return fmt.Errorf("list: %q twice", info.Name)
		}
		seen[info.Name] = true
		if s := own[info.Name]; s != nil {
			if err := checkInfo(info, s); err != nil {
				return err
			}
		} else if !others || info.Labels[mine] == fmt.Sprint("c", c.number) {
			return fmt.Errorf("list: %q is not to be there", info.Name)
		}
	}
	for name := range own {
		if !seen[name] {
			return fmt.Errorf("list: %q is missing among %d", name, len(infos))
		}
	}
	return nil
}

func (c *client) cleanup() error {
	_, err := c.timed("cleanup", func(ctx context.Context) error {
		_, err := c.api.Cleanup(ctx, &snapshotsapi.CleanupRequest{Snapshotter: c.snapshotter})
		return err
	}, codes.OK)
	return err
}

// refused is a call that must not succeed.
func (c *client) refused() error {
	c.refuse++
	missing := "load/0/there-is-no-such-snapshot"
	existing := c.pick(anyKind)
	if existing == nil {
		existing = c.base[0]
	}
	switch c.refuse % 6 {
	case 0:
		_, err := c.timed("stat", func(ctx context.Context) error {
			_, err := c.api.Stat(ctx, &snapshotsapi.StatSnapshotRequest{Snapshotter: c.snapshotter, Key: missing})
			return err
		}, codes.NotFound)
		return err
	case 1:
		_, err := c.timed("prepare", func(ctx context.Context) error {
			_, err := c.create(ctx, active, existing.name, c.base[0].name, nil)
			return err
		}, codes.AlreadyExists)
		return err
	case 2:
		_, err := c.timed("prepare", func(ctx context.Context) error {
			_, err := c.create(ctx, active, c.newName("extract"), missing, nil)
			return err
		}, codes.NotFound)
		return err
	case 3:
		s := c.pick(isParent)
		if s == nil {
			s = c.base[0]
		}
		_, err := c.timed("remove", func(ctx context.Context) error {
			_, err := c.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: c.snapshotter, Key: s.name})
			return err
		}, codes.FailedPrecondition)
		return err
	case 4:
		_, err := c.timed("commit", func(ctx context.Context) error {
			_, err := c.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: c.snapshotter, Name: c.newName("layer"), Key: missing})
			return err
		}, codes.NotFound)
		return err
	default:
		s := c.pick(isCommitted)
		if s == nil {
			s = c.base[0]
		}
		_, err := c.timed("mounts", func(ctx context.Context) error {
			_, err := c.api.Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: c.snapshotter, Key: s.name})
			return err
		}, codes.FailedPrecondition, codes.NotFound)
		return err
	}
}

// contend is a call at a name that others use at the same time.
func (c *client) contend() error {
	key, name := &c.keys[c.rng.Intn(len(c.keys))], &c.layers[c.rng.Intn(len(c.layers))]
	account := func(operation string, call func(context.Context) error, made, gone *shared, expected ...codes.Code) error {
		code, err := c.timed(operation, call, append(expected, codes.OK)...)
		if err == nil && code == codes.OK {
			made.add(1)
			gone.add(-1)
		}
		return err
	}
	labels := map[string]string{fixed: "2024-01-01T00:00:00Z"}
	switch c.rng.Intn(6) {
	case 0, 1:
		return account("prepare", func(ctx context.Context) error {
			_, err := c.create(ctx, active, key.name, c.base[0].name, labels)
			return err
		}, key, nil, codes.AlreadyExists)
	case 2:
		return account("commit", func(ctx context.Context) error {
			_, err := c.api.Commit(ctx, &snapshotsapi.CommitSnapshotRequest{Snapshotter: c.snapshotter, Name: name.name, Key: key.name, Labels: labels})
			return err
		}, name, key, codes.NotFound, codes.AlreadyExists)
	case 3, 4:
		victim := key
		if c.rng.Intn(2) == 0 {
			victim = name
		}
		return account("remove", func(ctx context.Context) error {
			_, err := c.api.Remove(ctx, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: c.snapshotter, Key: victim.name})
			return err
		}, nil, victim, codes.NotFound)
	default:
		return account("mounts", func(ctx context.Context) error {
			_, err := c.api.Mounts(ctx, &snapshotsapi.MountsRequest{Snapshotter: c.snapshotter, Key: key.name})
			return err
		}, nil, nil, codes.NotFound)
	}
}
