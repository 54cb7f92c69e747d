"""How fast do layers go in and out, beside tar, umoci, skopeo, podman and containerd?

    scripts/bench --layers --quick         small trees: about two minutes, once all is built
    scripts/bench --layers                 100,000 files, a layer of 100 MB: about ten minutes
    scripts/bench --layers --only diff,apply --rounds 5 --json out.json

Each sample is a process of its own, from its start to its end, on fresh directories; what is not measured (making the
directories, removing them) is outside of the clock, and the disk is flushed before. Rounds are interleaved and the programs
shuffled in each; numbers are medians, with the peak of resident memory and the time of all processors beside them.

    diff     100 files of a large tree are changed, removed and made; the layer goes to /dev/null, not compressed.
             `fuse` looks at what changed; `native` walks both trees, as containerd does.
    apply    a gzip layer of files of this machine, into an empty snapshot or directory; not synced by anybody.
             podman and skopeo are not here: they only take whole images.
    import   an OCI archive with that layer and a small one into an empty store, until all is unpacked. plywood and podman
             (vfs, as root) keep what they unpack; skopeo copies blobs only, unpacks nothing, and is the bound of that.
    export   the same image out of the store into an OCI archive. podman packs layers anew (its store keeps none).

Needed: golang-go, golang-github-containerd-containerd-dev, umoci, skopeo, podman; what is missing has no row.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import __main__ as bench

PARTS = ("diff", "apply", "import", "export")
SEED = 4
GO_SOURCES = "/usr/share/gocode/src/github.com/containerd/containerd/archive"


class Sizes:
    def __init__(self, quick):
        self.dirs, self.files = (200, 50) if quick else (2000, 50)
        self.layer_bytes = (20 if quick else 100) << 20
        self.rounds = 3 if quick else 5


def shell(*words, **options):
    return subprocess.run([str(word) for word in words], check=True, **options)


LAUNCHER = """
import json, os, sys, time
begin = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - begin
report = [os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024]
os.write(int(os.environ["PLYWOOD_BENCH_REPORT"]), json.dumps(report).encode())
"""
"""A process this small starts what is measured: of a large one the child would inherit the peak of memory."""


def timed(words, stdin=None):
    """Seconds, processor seconds and peak memory in MiB of one process."""
    os.sync()
    report, theirs = os.pipe()
    with (open(stdin, "rb") if stdin else open(os.devnull, "rb")) as source, open(os.devnull, "wb") as sink:
        done = subprocess.run([sys.executable, "-S", "-E", "-c", LAUNCHER, *map(str, words)], stdin=source, stdout=sink,
                              stderr=subprocess.PIPE, pass_fds=[theirs], check=False,
                              env={**os.environ, "PLYWOOD_BENCH_REPORT": str(theirs)})
    os.close(theirs)
    with os.fdopen(report) as told:
        answer = told.read()
    code, *sample = json.loads(answer) if answer else [1]
    if code != 0:
        raise SystemExit(f"bench: {' '.join(map(str, words))}: {done.stderr.decode(errors='replace')}")
    return tuple(sample)


def make_tree(root, sizes, rng):
    for number in range(sizes.dirs):
        directory = root / f"d{number // 50}" / f"e{number}"
        directory.mkdir(parents=True)
        for name in range(sizes.files):
            (directory / f"file{name}").write_bytes(rng.randbytes(rng.choice((0, 100, 1000, 3000))))


def change(root, sizes, rng):
    """A hundred files: written to, removed, new, and with another mode."""
    for number in range(100):
        directory = rng.randrange(sizes.dirs)
        path = root / f"d{directory // 50}" / f"e{directory}" / f"file{number % sizes.files}"
        if number % 4 == 0:
            path.unlink(missing_ok=True)
        elif number % 4 == 1:
            (path.parent / f"new{number}").write_bytes(rng.randbytes(2000))
        elif path.exists():
            with path.open("ab") as file:
                file.write(b"more")


def make_layer(path, sizes):
    """A layer of real files: programs, libraries and documents of this machine, up to a size."""
    found, total = [], 0
    for top in ("usr/bin", "usr/share", "usr/lib"):
        for directory, _, names in sorted(os.walk(f"/{top}")):
            if total >= sizes.layer_bytes:
                break
            for name in sorted(names):
                file = Path(directory, name)
                if file.is_symlink() or file.is_file():
                    found.append(str(file).lstrip("/"))
                    total += file.lstat().st_size
    names = path.with_suffix(".names")
    names.write_bytes(b"\0".join(name.encode() for name in found))
    shell("tar", "-C", "/", "--null", "--no-recursion", "-T", names, "--numeric-owner", "-czf", path)
    return len(found), total


class Programs:
    def __init__(self, work):
        target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
        target = target if target.is_absolute() else bench.REPOSITORY / target
        shell("cargo", "build", "--release", "--quiet", "--workspace", cwd=bench.REPOSITORY)
        self.plywood = target / "release" / "plywood"
        self.containerd = None
        if shutil.which("go") and Path(GO_SOURCES).is_dir():
            self.containerd = work / "containerd-layers"
            env = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "", "GOCACHE": str(work / "go")}
            shell("go", "build", "-o", self.containerd, bench.REPOSITORY / "scripts/layers/containerd.go", env=env)

    def store(self, root, backend):
        """Words that begin every call of plywood on this store."""
        return [self.plywood, "--root", root, "--backend", backend, "--json"]


class Table:
    def __init__(self):
        self.rows = {}

    def add(self, part, name, sample):
        self.rows.setdefault(part, {}).setdefault(name, []).append(sample)

    def medians(self, part):
        return {name: tuple(statistics.median(column) for column in zip(*samples))
                for name, samples in self.rows.get(part, {}).items()}

    def show(self):
        for part in self.rows:
            medians = self.medians(part)
            ours = min((value[0] for name, value in medians.items() if name.startswith("plywood")), default=None)
            print(f"\n{part:<26}{'ms':>10}{'cpu ms':>10}{'peak MiB':>10}{'of plywood':>12}")
            for name, (seconds, cpu, peak) in sorted(medians.items(), key=lambda item: item[1][0]):
                ratio = f"{seconds / ours:.2f}x" if ours else ""
                print(f"  {name:<24}{seconds * 1e3:>10.1f}{cpu * 1e3:>10.1f}{peak:>10.1f}{ratio:>12}")


def rounds(count, systems, table, part, rng):
    for _ in range(count):
        for name, run in rng.sample(sorted(systems.items()), len(systems)):
            table.add(part, name, run())


def measure_diff(programs, sizes, work, table, count, rng):
    base, new = work / "base", work / "new"
    make_tree(base, sizes, random.Random(SEED))
    shell("cp", "-a", base, new)
    change(new, sizes, random.Random(SEED + 1))
    systems = {}
    for backend in ("fuse", "native"):
        words = programs.store(work / f"store-{backend}", backend)
        tar = work / "tree.tar"
        shell("tar", "-C", base, "-cf", tar, ".")
        shell(*words, "prepare", "base-key", stdout=subprocess.DEVNULL)
        shell(*words, "apply", "base-key", tar, stdout=subprocess.DEVNULL)
        shell(*words, "commit", "base", "base-key", stdout=subprocess.DEVNULL)
        shell(*words, "prepare", "new", "base", stdout=subprocess.DEVNULL)
        # What changed, as a layer, so that both backends have the same.
        layer = work / "change.tar"
        if not layer.exists():
            with layer.open("wb") as out:
                shell(programs.containerd, "diff", base, new, stdout=out)
        shell(*words, "apply", "new", layer, stdout=subprocess.DEVNULL)
        systems[f"plywood {backend}"] = lambda words=words: timed([*words, "diff", "new", "--compress", "none", "-o", os.devnull])
    if programs.containerd:
        systems["containerd walking"] = lambda: timed([programs.containerd, "diff", base, new])
    rounds(count, systems, table, "diff", rng)


def measure_apply(programs, sizes, work, table, count, rng):
    layer = work / "layer.tar.gz"
    files, size = make_layer(layer, sizes)
    print(f"the layer: {files} files, {size >> 20} MiB, {layer.stat().st_size >> 20} MiB compressed")
    target = work / "applied"

    def fresh(run):
        def sample():
            target.mkdir()
            try:
                return run()
            finally:
                shutil.rmtree(target)
        return sample

    def plywood(backend):
        words = programs.store(target / "store", backend)
        shell(*words, "prepare", "key", stdout=subprocess.DEVNULL)
        return timed([*words, "apply", "key", layer])

    systems = {f"plywood {backend}": fresh(lambda backend=backend: plywood(backend)) for backend in ("fuse", "native")}

    def onto_parent():
        words = programs.store(target / "store", "fuse")
        for call in (("prepare", "a"), ("commit", "b", "a"), ("prepare", "key", "b")):
            shell(*words, *call, stdout=subprocess.DEVNULL)
        return timed([*words, "apply", "key", layer])

    systems["plywood fuse, on a parent"] = fresh(onto_parent)
    systems["tar -x"] = fresh(lambda: timed(["tar", "-C", target, "--numeric-owner", "-xpzf", layer]))
    if programs.containerd:
        systems["containerd apply"] = fresh(lambda: timed([programs.containerd, "apply", target], stdin=layer))
    if shutil.which("umoci"):
        def umoci():
            return timed(["umoci", "raw", "unpack", "--image", f"{image_layout(programs, work, layer)}:image", target / "rootfs"])
        systems["umoci raw unpack"] = fresh(umoci)
    rounds(count, systems, table, "apply", rng)


def image_archive(programs, work, layer):
    """An OCI archive of two layers, made once."""
    archive = work / "image.tar"
    if not archive.exists():
        words = programs.store(work / "image-store", "native")
        top = json.loads(shell(*words, "import", "--rootfs", layer, stdout=subprocess.PIPE).stdout)["name"]
        shell(*words, "prepare", "work", top, stdout=subprocess.DEVNULL)
        small = work / "small.txt"
        small.write_text("small\n")
        shell(*words, "fs", "cp", small, "work:/small.txt", stdout=subprocess.DEVNULL)
        shell(*words, "commit", "image", "work", stdout=subprocess.DEVNULL)
        shell(*words, "export", "image", "-o", archive, "--tag", "localhost/image:latest", stdout=subprocess.DEVNULL)
        shutil.rmtree(work / "image-store")
    return archive


def image_layout(programs, work, layer):
    layout = work / "layout"
    if not layout.exists():
        shell("skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{image_archive(programs, work, layer)}", f"oci:{layout}:image")
    return layout


def podman_words(root):
    return ["podman", "--root", root / "graph", "--runroot", root / "run", "--storage-driver", "vfs", "--events-backend", "none"]


def measure_images(programs, sizes, work, table, count, rng, parts):
    layer = work / "layer.tar.gz"
    if not layer.exists():
        make_layer(layer, sizes)
    archive = image_archive(programs, work, layer)
    target = work / "images"

    def fresh(run):
        def sample():
            target.mkdir()
            try:
                return run()
            finally:
                subprocess.run(["umount", "-q", target / "graph/vfs"], check=False, stderr=subprocess.DEVNULL)
                shutil.rmtree(target)
        return sample

    imports, exports = {}, {}
    for backend in ("fuse", "native"):
        words = programs.store(target / "store", backend)
        imports[f"plywood {backend}"] = fresh(lambda words=words: timed([*words, "import", archive]))
        kept = programs.store(work / f"kept-{backend}", backend)
        if "export" in parts:
            top = json.loads(shell(*kept, "import", archive, stdout=subprocess.PIPE).stdout)["name"]
            exports[f"plywood {backend}"] = fresh(
                lambda kept=kept, top=top: timed([*kept, "export", top, "-o", target / "out.tar"]))
            bare = programs.store(work / f"bare-{backend}", backend)
            if backend == "fuse":
                top = json.loads(shell(*bare, "import", "--no-blobs", archive, stdout=subprocess.PIPE).stdout)["name"]
                # Packed anew each time: what is packed is remembered, so each sample has a copy of the store.
                def anew(bare=bare, top=top):
                    shell("cp", "-a", work / "bare-fuse", target / "store")
                    return timed([*programs.store(target / "store", "fuse"), "export", top, "-o", target / "out.tar"])
                exports["plywood fuse, packed anew"] = fresh(anew)
    if shutil.which("skopeo"):
        imports["skopeo to oci (no unpack)"] = fresh(
            lambda: timed(["skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{archive}", f"oci:{target / 'oci'}:image"]))
        layout = image_layout(programs, work, layer)
        exports["skopeo from oci (no pack)"] = fresh(
            lambda: timed(["skopeo", "--insecure-policy", "copy", "-q", f"oci:{layout}:image", f"oci-archive:{target / 'out.tar'}"]))
    if shutil.which("podman"):
        imports["podman load (vfs)"] = fresh(lambda: timed([*podman_words(target), "load", "-q", "-i", archive]))
        if "export" in parts:
            kept = work / "podman"
            shell(*podman_words(kept), "load", "-q", "-i", archive, stdout=subprocess.DEVNULL)
            exports["podman save (vfs)"] = fresh(lambda: timed(
                [*podman_words(kept), "save", "-q", "--format", "oci-archive", "-o", target / "out.tar", "localhost/image:latest"]))
    if "import" in parts:
        rounds(count, imports, table, "import", rng)
    if "export" in parts:
        rounds(count, exports, table, "export", rng)


def main(words):
    parser = argparse.ArgumentParser(prog="scripts/bench --layers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small trees")
    parser.add_argument("--only", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--rounds", type=int, help="samples of each")
    parser.add_argument("--json", type=Path, help="write all samples there")
    parser.add_argument("--work", type=Path, default=Path(os.environ.get("TMPDIR", "/var/tmp")), help="where the files go")
    args = parser.parse_args(words)
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if os.geteuid() != 0:
        raise SystemExit("bench: --layers needs root: owners are part of what is measured")
    sizes = Sizes(args.quick)
    count = args.rounds or sizes.rounds
    work = args.work / f"plywood-layers-{os.getpid()}"
    work.mkdir(parents=True)
    table, rng = Table(), random.Random(SEED)
    try:
        programs = Programs(work)
        if "diff" in parts:
            measure_diff(programs, sizes, work, table, count, rng)
        if "apply" in parts:
            measure_apply(programs, sizes, work, table, count, rng)
        if "import" in parts or "export" in parts:
            measure_images(programs, sizes, work, table, count, rng, parts)
        table.show()
        if args.json:
            args.json.write_text(json.dumps({"rows": table.rows, "load": os.getloadavg()}, indent=1))
    finally:
        subprocess.run(["umount", "-q", work / "podman/graph/vfs"], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(work, ignore_errors=True)
    return 0
