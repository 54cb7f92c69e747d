// Many clients at once on a snapshot service: what it answers, how fast, and what it needs for that.
//
//	load serve -root DIR -address SOCKET            containerd's overlay snapshotter behind the service that Debian's
//	                                                containerd has for proxies (contrib/snapshotservice)
//	load run -address SOCKET [-calls N] [-pid P]    clients on any such service, plywood's, the one above or containerd
//
// The clients make calls in the proportions of real runs of containerd and BuildKit, and know what has to be answered: see
// client.go. A service that answers anything else makes it fail. The last line is JSON, for run.py.
//
// It is built in GOPATH mode against Debian's packages: see run.py.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/contrib/snapshotservice"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/native"
	"github.com/containerd/containerd/snapshots/overlay"
	"google.golang.org/grpc"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("say serve or run")
	}
	flags := flag.NewFlagSet(args[0], flag.ExitOnError)
	var s settings
	address := flags.String("address", "", "the socket")
	root := flags.String("root", "", "serve: directory of the store")
	backend := flags.String("backend", "overlay", "serve: overlay or native")
	flags.IntVar(&s.clients, "clients", 64, "run: connections")
	flags.IntVar(&s.calls, "calls", 10_000, "run: calls of all clients together")
	flags.Int64Var(&s.seed, "seed", 1, "run: of everything that is chosen")
	flags.IntVar(&s.pid, "pid", 0, "run: the process whose memory is looked at")
	flags.StringVar(&s.namespace, "namespace", "", "run: the namespace, for containerd")
	flags.StringVar(&s.snapshotter, "snapshotter", "load", "run: the name of the snapshotter, for containerd")
	flags.IntVar(&s.most, "most", 24, "run: snapshots that a client has at once")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch {
	case *address == "":
		return fmt.Errorf("-address is needed")
	case args[0] == "serve" && *root != "":
		return serve(*root, *backend, *address)
	case args[0] == "run" && s.clients > 0 && s.calls >= s.clients && s.most > 1:
		result, err := load(*address, &s)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(result)
	}
	return fmt.Errorf("see the first lines of scripts/load/main.go")
}

// serve is containerd's own snapshotter, configured as containerd does, where a proxy plugin would be.
func serve(root, backend, address string) error {
	var sn snapshots.Snapshotter
	var err error
	switch backend {
	case "overlay":
		sn, err = overlay.NewSnapshotter(root, overlay.AsynchronousRemove)
	case "native":
		sn, err = native.NewSnapshotter(root)
	default:
		err = fmt.Errorf("no such snapshotter: %s", backend)
	}
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		server.GracefulStop()
	}()
	if err := server.Serve(listener); err != nil {
		return err
	}
	return sn.Close()
}
