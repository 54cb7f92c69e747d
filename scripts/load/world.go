package main

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"google.golang.org/grpc"
)

type settings struct {
	clients, calls, pid, most int
	seed                      int64
	snapshotter, namespace    string
}

// What all clients have in common.
type world struct {
	*settings
	context      context.Context
	base         []*snapshot
	keys, layers []shared
	made         int64
	samples      []sample
	sampling     sync.Mutex
}

// A name that all clients use, and how often it was made and not taken away.
type shared struct {
	name    string
	present int64
}

func (s *shared) add(n int64) {
	if s != nil {
		atomic.AddInt64(&s.present, n)
	}
}

const (
	baseLayers  = 5
	sharedNames = 8
)

type result struct {
	Calls     int               `json:"calls"`
	Seconds   float64           `json:"seconds"`
	PerSecond float64           `json:"per_second"`
	Times     map[string]timing `json:"times"`
	Samples   []sample          `json:"samples"`
	Left      int               `json:"left"`
}

// Times of a kind of call, in milliseconds.
type timing struct {
	Calls int     `json:"calls"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	Max   float64 `json:"max_ms"`
}

// What the process of the service has after so many calls.
type sample struct {
	Calls       int64 `json:"calls"`
	Resident    int64 `json:"resident_kib"`
	Anonymous   int64 `json:"anonymous_kib"`
	Threads     int64 `json:"threads"`
	Descriptors int   `json:"descriptors"`
}

func connect(ctx context.Context, address string) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return grpc.DialContext(ctx, dialer.DialAddress(address), grpc.WithBlock(),
		grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(16<<20)))
}

func load(address string, s *settings) (*result, error) {
	w := &world{settings: s, context: context.Background()}
	if s.namespace != "" {
		w.context = namespaces.WithNamespace(w.context, s.namespace)
	}
	for i := 0; i < sharedNames; i++ {
		w.keys = append(w.keys, shared{name: fmt.Sprint("load/1/shared-key-", i)})
		w.layers = append(w.layers, shared{name: fmt.Sprint("load/1/shared-layer-", i)})
	}
	clients := make([]*client, s.clients)
	for i := range clients {
		conn, err := connect(w.context, address)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		clients[i] = &client{world: w, number: i + 1, rng: rand.New(rand.NewSource(s.seed*1000 + int64(i))),
			api: snapshotsapi.NewSnapshotsClient(conn), times: map[string][]time.Duration{}}
	}
	if err := w.makeBase(clients[0]); err != nil {
		return nil, fmt.Errorf("before the start: %w", err)
	}
	start := time.Now()
	if err := w.runAll(clients); err != nil {
		return nil, err
	}
	took := time.Since(start)
	w.sample(w.made)
	made := int(w.made)
	left, err := w.checkAll(clients[0], clients)
	if err != nil {
		return nil, fmt.Errorf("in the end: %w", err)
	}
	times := timings(clients)
	if err := w.removeAll(clients[0]); err != nil {
		return nil, fmt.Errorf("while everything is removed: %w", err)
	}
	w.sample(atomic.LoadInt64(&w.made))
	return &result{made, took.Seconds(), float64(made) / took.Seconds(), times, w.samples, left}, nil
}

// makeBase makes the layers that all clients build upon. It counts for nothing.
func (w *world) makeBase(c *client) error {
	for i := 0; i < baseLayers; i++ {
		s := &snapshot{name: fmt.Sprint("load/1/base-", i), kind: committed, labels: map[string]string{fixed: "2024-01-01T00:00:00Z"}}
		if i > 0 {
			s.parent = w.base[i-1]
		}
		key := s.name + "-key"
		mounts, err := c.create(w.context, active, key, nameOf(s.parent), s.labels)
		if err != nil {
			return err
		}
		s.mounts = mounts
		if err := s.write(); err != nil {
			return err
		}
		_, err = c.api.Commit(w.context, &snapshotsapi.CommitSnapshotRequest{Snapshotter: c.snapshotter, Name: s.name, Key: key, Labels: s.labels})
		if err != nil {
			return err
		}
		w.base = append(w.base, s)
	}
	return nil
}

func (w *world) isBase(s *snapshot) bool {
	for _, base := range w.base {
		if base == s {
			return true
		}
	}
	return false
}

// runAll lets all clients make their calls, until one of them is answered wrongly.
func (w *world) runAll(clients []*client) error {
	var failed atomic.Value
	var all sync.WaitGroup
	each := w.calls / len(clients)
	if w.calls%len(clients) != 0 {
		each++
	}
	for _, c := range clients {
		all.Add(1)
		go func(c *client) {
			defer all.Done()
			for i := 0; i < each && failed.Load() == nil; i++ {
				if err := c.next(); err != nil {
					failed.CompareAndSwap(nil, fmt.Errorf("client %d, call %d: %w", c.number, i+1, err))
				}
			}
		}(c)
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return err.(error)
	}
	return nil
}

// count notes that a call was answered; now and then it looks at the process of the service.
func (w *world) count() {
	made := atomic.AddInt64(&w.made, 1)
	for n := int64(1000); n <= made; n *= 10 {
		if made == n {
			w.sample(made)
		}
	}
}

// sample looks at the memory, the threads and the open files of the service.
func (w *world) sample(calls int64) {
	if w.pid == 0 {
		return
	}
	s := sample{Calls: calls}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.pid))
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		value, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			s.Resident = value
		case "RssAnon:":
			s.Anonymous = value
		case "Threads:":
			s.Threads = value
		}
	}
	open, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.pid))
	s.Descriptors = len(open)
	w.sampling.Lock()
	w.samples = append(w.samples, s)
	w.sampling.Unlock()
}

// checkAll says whether everything is there that anybody made and did not take away, and nothing else; how much it is.
func (w *world) checkAll(c *client, clients []*client) (int, error) {
	infos, err := c.walk(w.context)
	if err != nil {
		return 0, err
	}
	expected, unsure := map[string]*snapshot{}, map[string]bool{}
	for _, s := range w.base {
		expected[s.name] = s
	}
	for _, c := range clients {
		for _, s := range c.own {
			expected[s.name] = s
		}
	}
	for _, all := range [][]shared{w.keys, w.layers} {
		for i := range all {
			switch all[i].present {
			case 0:
			case 1:
				unsure[all[i].name] = true
			default:
				return 0, fmt.Errorf("%q was made %d times more often than taken away", all[i].name, all[i].present)
			}
		}
	}
	for i := range infos {
		info := &infos[i]
		if s := expected[info.Name]; s != nil {
			if err := checkInfo(info, s); err != nil {
				return 0, err
			}
			delete(expected, info.Name)
		} else if unsure[info.Name] {
			delete(unsure, info.Name)
		} else {
			return 0, fmt.Errorf("%q is not to be there, or not twice", info.Name)
		}
	}
	for name := range expected {
		return 0, fmt.Errorf("%q is missing", name)
	}
	for name := range unsure {
		return 0, fmt.Errorf("%q is missing, which all clients use", name)
	}
	return len(infos), nil
}

// removeAll does what containerd does to what it does not know: children first, then the remains.
func (w *world) removeAll(c *client) error {
	for {
		infos, err := c.walk(w.context)
		if err != nil {
			return err
		}
		if len(infos) == 0 {
			_, err := c.api.Cleanup(w.context, &snapshotsapi.CleanupRequest{Snapshotter: c.snapshotter})
			return err
		}
		parents := map[string]bool{}
		for i := range infos {
			parents[infos[i].Parent] = true
		}
		for i := range infos {
			if parents[infos[i].Name] {
				continue
			}
			_, err := c.api.Remove(w.context, &snapshotsapi.RemoveSnapshotRequest{Snapshotter: c.snapshotter, Key: infos[i].Name})
			if err != nil {
				return err
			}
		}
	}
}

// timings are those of all clients together, for each kind of call and for "all".
func timings(clients []*client) map[string]timing {
	collected := map[string][]time.Duration{}
	for _, c := range clients {
		for operation, times := range c.times {
			collected[operation] = append(collected[operation], times...)
			collected["all"] = append(collected["all"], times...)
		}
	}
	answer := map[string]timing{}
	for operation, times := range collected {
		sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
		at := func(part float64) float64 {
			return float64(times[int(part*float64(len(times)-1))]) / float64(time.Millisecond)
		}
		answer[operation] = timing{len(times), at(0.5), at(0.99), at(1)}
	}
	return answer
}
