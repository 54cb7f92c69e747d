// A client of containerd whose layers go through plywood's diff service, as those of containerd 1.7 and later can:
// 1.6 knows no proxy for differs, and the client library takes any.
//
//	differ image ARCHIVE NAME LAYER...   an OCI archive of layers in tar, which runs COMMAND [/bin/sh]
//	differ unpack IMAGE                  layers of an image into snapshots, by plywood
//	differ commit CONTAINER IMAGE        a container's changes as an image with one layer more, by plywood
//	differ compare CONTAINER             the same changes by plywood and by containerd: members, owners, content
//	differ digest IMAGE                  what an image's snapshot shows, as a digest of an archive of all of it
//
// CONTAINERD and PLYWOOD are the sockets, SNAPSHOTTER and NAMESPACE names in containerd.
// It is built in GOPATH mode against Debian's packages: see scripts/containerd.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	"github.com/containerd/containerd/archive"
	"github.com/containerd/containerd/archive/compression"
	"github.com/containerd/containerd/content"
	"github.com/containerd/containerd/diff"
	"github.com/containerd/containerd/images"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/pkg/dialer"
	"github.com/containerd/containerd/rootfs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

func main() {
	ctx := namespaces.WithNamespace(context.Background(), os.Getenv("NAMESPACE"))
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "differ:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 3 && args[0] == "image" {
		return writeImage(args[1], args[2], args[3:])
	}
	conn, err := grpc.Dial(dialer.DialAddress(os.Getenv("PLYWOOD")), grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return err
	}
	ours := containerd.NewDiffServiceFromClient(diffapi.NewDiffClient(conn))
	client, err := containerd.New(os.Getenv("CONTAINERD"), containerd.WithServices(containerd.WithDiffService(ours)))
	if err != nil {
		return err
	}
	defer client.Close()
	switch {
	case len(args) == 2 && args[0] == "unpack":
		image, err := client.GetImage(ctx, args[1])
		if err != nil {
			return err
		}
		return image.Unpack(ctx, os.Getenv("SNAPSHOTTER"))
	case len(args) == 3 && args[0] == "commit":
		return commit(ctx, client, args[1], args[2])
	case len(args) == 2 && args[0] == "compare":
		return compare(ctx, client, args[1])
	case len(args) == 2 && args[0] == "digest":
		return show(ctx, client, args[1])
	}
	return errors.New("what is to be done? See the first lines of scripts/differ/main.go")
}

// writeImage writes layers as an OCI archive, each compressed.
func writeImage(path, name string, layers []string) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	writer := tar.NewWriter(out)
	add := func(name string, data []byte) error {
		if err := writer.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err := writer.Write(data)
		return err
	}
	blob := func(mediaType string, data []byte) (ocispec.Descriptor, error) {
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		return desc, add("blobs/sha256/"+desc.Digest.Encoded(), data)
	}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Architecture: "amd64", OS: "linux"}
	config.Config.Cmd = []string{"/bin/sh"}
	if command := os.Getenv("COMMAND"); command != "" {
		config.Config.Cmd = strings.Fields(command)
	}
	config.Config.Env = []string{"PATH=/bin"}
	config.RootFS.Type = "layers"
	for _, layer := range layers {
		data, err := os.ReadFile(layer)
		if err != nil {
			return err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(data))
		var packed bytes.Buffer
		gz := gzip.NewWriter(&packed)
		if _, err := gz.Write(data); err != nil {
			return err
		}
		if err := gz.Close(); err != nil {
			return err
		}
		desc, err := blob(ocispec.MediaTypeImageLayerGzip, packed.Bytes())
		if err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, desc)
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if manifest.Config, err = blob(ocispec.MediaTypeImageConfig, text); err != nil {
		return err
	}
	if text, err = json.Marshal(manifest); err != nil {
		return err
	}
	desc, err := blob(ocispec.MediaTypeImageManifest, text)
	if err != nil {
		return err
	}
	desc.Annotations = map[string]string{images.AnnotationImageName: name}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{desc}}
	if text, err = json.Marshal(index); err != nil {
		return err
	}
	if err := add("index.json", text); err != nil {
		return err
	}
	if err := add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return writer.Close()
}

// changes is what a container has changed, as a layer by somebody.
func changes(ctx context.Context, client *containerd.Client, name string, by diff.Comparer, opts ...diff.Opt) (ocispec.Descriptor, error) {
	container, err := client.LoadContainer(ctx, name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	info, err := container.Info(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return rootfs.CreateDiff(ctx, info.SnapshotKey, client.SnapshotService(info.Snapshotter), by, opts...)
}

func commit(ctx context.Context, client *containerd.Client, name, as string) error {
	container, err := client.LoadContainer(ctx, name)
	if err != nil {
		return err
	}
	base, err := container.Image(ctx)
	if err != nil {
		return err
	}
	ctx, done, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer done(ctx)
	layer, err := changes(ctx, client, name, client.DiffService())
	if err != nil {
		return err
	}
	store := client.ContentStore()
	manifest, err := images.Manifest(ctx, store, base.Target(), base.Platform())
	if err != nil {
		return err
	}
	config, err := read[ocispec.Image](ctx, store, manifest.Config)
	if err != nil {
		return err
	}
	info, err := store.Info(ctx, layer.Digest)
	if err != nil {
		return err
	}
	diffID, err := digest.Parse(info.Labels["containerd.io/uncompressed"])
	if err != nil {
		return fmt.Errorf("the label of the new layer: %w", err)
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	manifest.Layers = append(manifest.Layers, layer)
	labels := map[string]string{"containerd.io/gc.ref.snapshot." + os.Getenv("SNAPSHOTTER"): identity.ChainID(config.RootFS.DiffIDs).String()}
	if manifest.Config, err = write(ctx, store, ocispec.MediaTypeImageConfig, config, labels); err != nil {
		return err
	}
	labels = map[string]string{"containerd.io/gc.ref.content.0": manifest.Config.Digest.String()}
	for i, layer := range manifest.Layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", i+1)] = layer.Digest.String()
	}
	target, err := write(ctx, store, ocispec.MediaTypeImageManifest, manifest, labels)
	if err != nil {
		return err
	}
	_, err = client.ImageService().Create(ctx, images.Image{Name: as, Target: target, CreatedAt: time.Now()})
	return err
}

func read[T any](ctx context.Context, store content.Store, desc ocispec.Descriptor) (T, error) {
	var value T
	data, err := content.ReadBlob(ctx, store, desc)
	if err == nil {
		err = json.Unmarshal(data, &value)
	}
	return value, err
}

func write(ctx context.Context, store content.Store, mediaType string, value any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(data), desc, content.WithLabels(labels))
}

// compare has the changes of a container written by both, each with and without compression.
func compare(ctx context.Context, client *containerd.Client, name string) error {
	ctx, done, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer done(ctx)
	theirs := containerd.NewDiffServiceFromClient(diffapi.NewDiffClient(client.Conn()))
	var first []string
	for _, by := range []struct {
		name      string
		by        diff.Comparer
		mediaType string
	}{
		{"containerd", theirs, ocispec.MediaTypeImageLayerGzip},
		{"plywood", client.DiffService(), ocispec.MediaTypeImageLayer},
		{"plywood", client.DiffService(), ocispec.MediaTypeImageLayerGzip},
		{"plywood", client.DiffService(), ocispec.MediaTypeImageLayerZstd},
	} {
		desc, err := changes(ctx, client, name, by.by, diff.WithMediaType(by.mediaType), diff.WithReference("compare"))
		if err != nil {
			return fmt.Errorf("%s %s: %w", by.name, by.mediaType, err)
		}
		found, err := members(ctx, client.ContentStore(), desc)
		if err != nil {
			return fmt.Errorf("%s %s: %w", by.name, by.mediaType, err)
		}
		if first == nil {
			first = found
		}
		if strings.Join(first, "\n") != strings.Join(found, "\n") {
			return fmt.Errorf("%s %s: other members: %q instead of %q", by.name, by.mediaType, found, first)
		}
	}
	fmt.Println(strings.Join(first, "\n"))
	return nil
}

// members is one line for each; containerd 1.6 gives whiteouts the present time.
func members(ctx context.Context, store content.Store, desc ocispec.Descriptor) ([]string, error) {
	blob, err := store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	plain, err := compression.DecompressStream(content.NewReader(blob))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	var found []string
	for reader := tar.NewReader(plain); ; {
		header, err := reader.Next()
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(reader)
		if err != nil {
			return nil, err
		}
		changed := header.ModTime.Unix()
		if strings.Contains(header.Name, ".wh.") {
			changed = 0
		}
		found = append(found, fmt.Sprintf("%s %c %o %d:%d %q %d %v %s", header.Name, header.Typeflag, header.Mode, header.Uid, header.Gid,
			header.Linkname, changed, header.PAXRecords, digest.FromBytes(data).Encoded()[:16]))
	}
}

// show prints a digest of all that a view of an image shows.
func show(ctx context.Context, client *containerd.Client, name string) error {
	image, err := client.GetImage(ctx, name)
	if err != nil {
		return err
	}
	ids, err := image.RootFS(ctx)
	if err != nil {
		return err
	}
	ctx, done, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer done(ctx)
	snapshotter := client.SnapshotService(os.Getenv("SNAPSHOTTER"))
	key := fmt.Sprintf("differ-%d", os.Getpid())
	mounts, err := snapshotter.View(ctx, key, identity.ChainID(ids).String())
	if err != nil {
		return err
	}
	defer snapshotter.Remove(ctx, key)
	return mount.WithTempMount(ctx, mounts, func(root string) error {
		hash := digest.Canonical.Hash()
		if err := archive.WriteDiff(ctx, hash, "", root); err != nil {
			return err
		}
		fmt.Println(digest.NewDigest(digest.Canonical, hash))
		return nil
	})
}
