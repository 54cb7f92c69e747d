// What a kubelet does with one pod: a client of containerd's CRI plugin, which uses whatever snapshotter its configuration
// names.
//
//	cri SOCKET IMAGE COMMAND...   runs a pod, a container of IMAGE in it, COMMAND in that container, whose output is
//	                              printed; asks how much both use; and removes all of it, the image at last
//
// The few messages are written and read by their numbers in k8s.io/cri-api/pkg/apis/runtime/v1/api.proto, whose Go code
// Debian does not have. It is built in GOPATH mode against Debian's packages: see scripts/containerd.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/pkg/dialer"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// message is a message that is written.
type message []byte

func (m message) bytes(number protowire.Number, value []byte) message {
	return protowire.AppendBytes(protowire.AppendTag(m, number, protowire.BytesType), value)
}

func (m message) text(number protowire.Number, value string) message {
	return m.bytes(number, []byte(value))
}

func (m message) number(number protowire.Number, value uint64) message {
	return protowire.AppendVarint(protowire.AppendTag(m, number, protowire.VarintType), value)
}

// field is what the last field of a number holds: bytes, or a number. Both are empty if there is none.
func field(m []byte, wanted protowire.Number) (value []byte, number uint64, err error) {
	for len(m) > 0 {
		n, kind, size := protowire.ConsumeTag(m)
		if size < 0 {
			return nil, 0, protowire.ParseError(size)
		}
		m = m[size:]
		switch {
		case n == wanted && kind == protowire.BytesType:
			value, size = protowire.ConsumeBytes(m)
		case n == wanted && kind == protowire.VarintType:
			number, size = protowire.ConsumeVarint(m)
		default:
			size = protowire.ConsumeFieldValue(n, kind, m)
		}
		if size < 0 {
			return nil, 0, protowire.ParseError(size)
		}
		m = m[size:]
	}
	return value, number, nil
}

// inner is the field at the end of a path of numbers.
func inner(m []byte, path ...protowire.Number) (value []byte, number uint64, err error) {
	value = m
	for _, n := range path {
		if value, number, err = field(value, n); err != nil {
			return nil, 0, err
		}
	}
	return value, number, nil
}

// raw carries messages as they are.
type raw struct{}

func (raw) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func (raw) Name() string { return "proto" }

type client struct {
	conn *grpc.ClientConn
	ctx  context.Context
}

func (c *client) call(method string, request message) ([]byte, error) {
	in, out := []byte(request), []byte(nil)
	if err := c.conn.Invoke(c.ctx, "/runtime.v1."+method, &in, &out, grpc.ForceCodec(raw{})); err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	return out, nil
}

// id makes a call that answers with an identifier.
func (c *client) id(method string, request message) (string, error) {
	answer, err := c.call(method, request)
	if err != nil {
		return "", err
	}
	id, _, err := field(answer, 1)
	if err == nil && len(id) == 0 {
		err = fmt.Errorf("%s: no identifier", method)
	}
	return string(id), err
}

// eventually makes a call until its answer has a number above zero where it is looked for.
func (c *client) eventually(method string, request message, path ...protowire.Number) error {
	for n := 0; n < 60; n++ {
		answer, err := c.call(method, request)
		if err != nil {
			return err
		}
		if _, number, err := inner(answer, path...); err != nil || number > 0 {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
	return fmt.Errorf("%s: nothing is used after 30 seconds", method)
}

// known waits until the plugin knows an image.
func (c *client) known(picture message) error {
	for n := 0; n < 60; n++ {
		answer, err := c.call("ImageService/ImageStatus", message(nil).bytes(1, picture))
		if err != nil {
			return err
		}
		if found, _, err := field(answer, 1); err != nil || len(found) > 0 {
			return err
		}
		time.Sleep(500 * time.Millisecond)
	}
	return fmt.Errorf("the image is not known after 30 seconds")
}

func run(socket, image string, command []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	conn, err := grpc.DialContext(ctx, dialer.DialAddress(socket), grpc.WithBlock(), grpc.WithInsecure(),
		grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := &client{conn, ctx}

	// The plugin learns of images by events, in the order in which they came.
	picture := message(nil).text(1, image)
	if err := c.known(picture); err != nil {
		return err
	}
	name := message(nil).text(1, "pod").text(2, "uid").text(3, "default")
	// The network of the machine: there is no plugin for others.
	const node = 2
	security := message(nil).bytes(1, message(nil).number(1, node))
	pod := message(nil).bytes(1, name).bytes(8, message(nil).bytes(2, security))
	sandbox, err := c.id("RuntimeService/RunPodSandbox", message(nil).bytes(1, pod))
	if err != nil {
		return err
	}
	container := message(nil).bytes(1, message(nil).text(1, "works")).bytes(2, picture).text(3, "sleep").text(3, "1000")
	id, err := c.id("RuntimeService/CreateContainer", message(nil).text(1, sandbox).bytes(2, container).bytes(3, pod))
	if err != nil {
		return err
	}
	if _, err := c.call("RuntimeService/StartContainer", message(nil).text(1, id)); err != nil {
		return err
	}
	order := message(nil).text(1, id)
	for _, word := range command {
		order = order.text(2, word)
	}
	said, err := c.call("RuntimeService/ExecSync", order.number(3, 30))
	if err != nil {
		return err
	}
	out, _, err := field(said, 1)
	if err != nil {
		return err
	}
	problem, _, _ := field(said, 2)
	if _, code, err := field(said, 3); err != nil || code != 0 {
		return fmt.Errorf("%q ended with %d %v: %s", command, code, err, problem)
	}
	fmt.Print(string(out))
	// Every ten seconds the plugin asks the snapshotter what its snapshots use.
	err = c.eventually("RuntimeService/ContainerStats", message(nil).text(1, id), 1, 4, 3, 1)
	if err != nil {
		return err
	}
	if err := c.eventually("ImageService/ImageFsInfo", nil, 1, 3, 1); err != nil {
		return err
	}
	for _, last := range []struct {
		method  string
		request message
	}{
		{"RuntimeService/StopContainer", message(nil).text(1, id)},
		{"RuntimeService/RemoveContainer", message(nil).text(1, id)},
		{"RuntimeService/StopPodSandbox", message(nil).text(1, sandbox)},
		{"RuntimeService/RemovePodSandbox", message(nil).text(1, sandbox)},
		{"ImageService/RemoveImage", message(nil).bytes(1, picture)},
	} {
		if _, err := c.call(last.method, last.request); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "cri: say SOCKET IMAGE COMMAND...")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}
