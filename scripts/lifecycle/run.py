"""How fast is plywood's snapshotter, beside containerd's own, and does a call cost the same in a large store?

    scripts/bench --lifecycle --quick      up to 10,000 snapshots: under two minutes, once all is built
    scripts/bench --lifecycle              up to 100,000 snapshots: about half an hour, and 6 GB of disk
    scripts/bench --lifecycle --list       what each system is
    scripts/bench --lifecycle --ram --systems fuse,c:overlay --json out.json

For each number of snapshots a store is filled with a base and children on it. Then rounds: in each, in an order
that is shuffled, a process for each system opens the store, takes one snapshot after the other through its life
(prepare on one of the committed, mounts, stat and update of another one, write a file of 4 KiB into it, commit,
remove), and at the end lists everything and cleans up. So a store always has as many snapshots as it says. Numbers
are medians over the rounds; "growth" is what a call costs in the largest store, divided by what it costs in the
smallest, each in its quietest round. Both sides are used as libraries, by one thread, without gRPC:
scripts/lifecycle/lifecycle.rs and scripts/lifecycle/containerd.go.

What is durable when a call returns differs, and decides most of the time of calls that write:

    as it comes   rows, names of new snapshots, and content of committed ones are on the disk
    -nosync       rows only: what containerd does, whose database (bbolt) syncs at each commit
    -relaxed      nothing for certain: the last transactions may be lost in a power cut

containerd's overlay leaves directories of removed snapshots to its garbage collector; "discard" is that part of
the work, for each snapshot. All others delete them before remove returns, but `-async`, which does it meanwhile.
Needed for containerd's part: golang-go and golang-github-containerd-containerd-dev (Debian), which are installed if
this runs as root and PLYWOOD_SKIP_INSTALL is not 1. Without them its columns are missing.
"""

import argparse
import dataclasses
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

# scripts/bench, which is running, and whose tables, work directory and facts are used here.
import __main__ as bench

GO_PACKAGES = {"go": "golang-go", "/usr/share/gocode/src/github.com/containerd/containerd/snapshots":
               "golang-github-containerd-containerd-dev"}
OPERATIONS = ("prepare", "mounts", "stat", "update", "commit", "remove", "discard", "list", "cleanup", "open")
EACH = ("list", "cleanup")
"""Operations that look at every snapshot: their time is divided by how many there are."""
FLAT = 2.0
"""A call that costs this much more in the largest store than in the smallest is named."""
UNSYNCED = ("--sync-on-commit=off", "--sync-on-create=off")


@dataclasses.dataclass(frozen=True)
class System:
    """One way to run one snapshotter."""

    name: str
    program: str
    backend: str
    what: str
    flags: tuple = ()
    peer: str = ""  # the system of containerd that it is compared with
    quick: bool = True  # part of --quick

    @property
    def store(self):
        """Systems with the same store can use the same directories."""
        kind = "stacked" if self.program == "plywood" and self.backend in ("fuse", "overlay") else self.backend
        return f"{self.program}-{kind}"


SYSTEMS = (
    System("fuse", "plywood", "fuse", "plywood as it comes", peer="c:overlay"),
    System("fuse-nosync", "plywood", "fuse", "only the rows are durable", UNSYNCED, "c:overlay"),
    System("fuse-relaxed", "plywood", "fuse", "nothing is durable for certain",
           (*UNSYNCED, "--durability=relaxed"), "c:overlay", False),
    System("fuse-async", "plywood", "fuse", "directories are removed in the background", ("--removal=async",),
           "c:overlay", False),
    System("overlay", "plywood", "overlay", "plywood with the kernel's overlayfs", (), "c:overlay", False),
    System("overlay-nosync", "plywood", "overlay", "only the rows are durable", UNSYNCED, "c:overlay"),
    System("native", "plywood", "native", "plywood with full copies", (), "c:native"),
    System("native-nosync", "plywood", "native", "only the rows are durable", UNSYNCED, "c:native"),
    System("btrfs", "plywood", "btrfs", "plywood on btrfs", (), "c:btrfs"),
    System("btrfs-nosync", "plywood", "btrfs", "only the rows are durable", UNSYNCED, "c:btrfs"),
    System("c:overlay", "containerd", "overlay", "containerd's overlay, as containerd configures it"),
    System("c:overlay-sync", "containerd", "overlay", "the same, removing in the call", ("--removal=sync",),
           quick=False),
    System("c:native", "containerd", "native", "containerd's native"),
    System("c:btrfs", "containerd", "btrfs", "containerd's btrfs"),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    snapshots: tuple
    most_on_btrfs: int  # its subvolumes take long to make and long to delete
    rounds: int
    seconds: float

    @property
    def inodes(self):
        """Of all stores together: up to three for a snapshot, in four kinds of store."""
        return 50_000 + 12 * sum(self.snapshots)

    @property
    def disk(self):
        """Size of an image that all stores fit in, in bytes: a directory takes a page."""
        return (1 << 30) + 5000 * self.inodes


FULL = Sizes((10, 1_000, 10_000, 100_000), 10_000, rounds=7, seconds=2.0)
QUICK = Sizes((10, 1_000, 10_000), 1_000, rounds=3, seconds=0.3)
TINY = Sizes((10, 100), 100, rounds=1, seconds=0.01)
"""Not worth a number: only shows that everything works (--tiny)."""


class Missing(Exception):
    """Something that a system needs is not there; the text says how to get it."""


# ---------------------------------------------------------------------------------------------------------------
# Programs and disks
# ---------------------------------------------------------------------------------------------------------------


def target_directory():
    """Where things are built."""
    return bench.REPOSITORY / os.environ.get("CARGO_TARGET_DIR", "target")


def build_plywood(args):
    """The example as a program: the one named, or built now."""
    if args.plywood:
        return args.plywood.resolve()
    if not shutil.which("cargo"):
        raise Missing("there is no cargo: install Rust, or name a program with --plywood")
    command = ["cargo", "build", "--quiet", "--release", "-p", "plywood", "--example", "lifecycle"]
    if subprocess.run(command, cwd=bench.REPOSITORY, stdout=sys.stderr).returncode != 0:
        raise Missing("the example lifecycle could not be built")
    return target_directory() / "release/examples/lifecycle"


def build_containerd(args):
    """containerd's snapshotters as a program: the one named, or built now, in GOPATH mode as Debian packages want it."""
    if args.containerd:
        return args.containerd.resolve()
    install_go()
    if absent := missing_go():
        raise Missing(f"missing Debian packages: apt-get install {' '.join(absent)}")
    home = target_directory() / "lifecycle"
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": "",
                   "GOCACHE": str(home / "go-cache")}
    said = ""
    for tags in ([], ["-tags", "no_btrfs"]):
        built = subprocess.run(["go", "build", *tags, "-o", home / "containerd", "."], env=environment,
                               cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if built.returncode == 0:
            return home / "containerd"
        said = built.stdout.decode(errors="replace").strip()
    raise Missing(f"containerd.go could not be built: {said.splitlines()[-1] if said else 'go says nothing'}")


def missing_go():
    """Debian packages that are needed to build containerd's part."""
    return [package for found, package in GO_PACKAGES.items() if not (shutil.which(found) or os.path.isdir(found))]


def install_go():
    """Install what is missing, as root, unless the user says not to."""
    absent = missing_go()
    if not absent or os.environ.get("PLYWOOD_SKIP_INSTALL") == "1" or os.geteuid() != 0:
        return
    if not shutil.which("apt-get"):
        return
    print(f"installing {' '.join(absent)}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *absent]):
        subprocess.run(["apt-get", "-qq", *command], stdout=subprocess.DEVNULL, env=environment)


def make_image(place, kind, size, *options):
    """A file system of this kind in a file; it is unmounted with everything else below the work directory."""
    if os.geteuid() != 0 or bench.in_user_namespace():
        raise Missing("a file system in a file needs real root")
    if not shutil.which(f"mkfs.{kind}"):
        packages = {"btrfs": "btrfs-progs", "ext4": "e2fsprogs"}
        raise Missing(f"there is no mkfs.{kind}: apt-get install {packages[kind]}")
    image, disk = place / f"{kind}.image", place / f"{kind}-disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(size)
    for command in ([f"mkfs.{kind}", "-q", *options, image], ["mount", "-o", "loop", image, disk]):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise Missing(f"{command[0]}: {done.stdout.decode(errors='replace').strip()}")
    return disk


def make_disks(args, sizes, work):
    """Directories for the stores: one for everything, and one on btrfs, or why there is none."""
    place = work.path
    if args.ram:
        place = work.path / "memory"
        place.mkdir()
        bench.mount("tmpfs", place, "tmpfs", 0, f"size={2 * sizes.disk}")
    disks = {"": work.path}
    if args.ram:
        disks[""] = make_image(place, "ext4", sizes.disk, "-N", str(sizes.inodes), "-E",
                               "lazy_itable_init=0,lazy_journal_init=0")
    try:
        disks["btrfs"] = make_image(place, "btrfs", sizes.disk)
    except Missing as error:
        disks["btrfs"] = error
    return disks


# ---------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------


class Results:
    """Lines of the programs, by system, snapshots and operation; and why there are none."""

    def __init__(self, systems, sizes):
        self.systems, self.sizes = systems, sizes
        self.lines, self.reasons = {}, {}

    def add(self, system, line):
        self.lines.setdefault((system.name, line["snapshots"], line["operation"]), []).append(line)

    def median(self, system, snapshots, operation, field="p50_us", of_rounds=statistics.median):
        """The median over the rounds; for what looks at every snapshot, divided by how many there are."""
        lines = self.lines.get((system.name, snapshots, operation))
        if not lines:
            return None
        value = of_rounds(line[field] for line in lines)
        if operation not in EACH:
            return value
        return value * snapshots if field == "per_second" else value / snapshots

    def largest(self, system):
        """The largest store that was measured."""
        return max((n for name, n, _ in self.lines if name == system.name), default=None)

    def growth(self, system, operation):
        """What a call costs in the largest store, divided by what it costs in the smallest that is worth it."""
        # The quietest round of each: what else the machine does makes calls slower, never quicker.
        costs = [self.median(system, n, operation, of_rounds=min) for n in self.sizes.snapshots]
        costs = [cost for cost in costs if cost]
        # Ten snapshots do not tell what one costs in a list.
        costs = costs[1:] if operation in EACH else costs
        return costs[-1] / costs[0] if len(costs) > 1 else None


class Runner:
    """Runs the programs on their stores."""

    def __init__(self, args, sizes, programs, disks):
        self.args, self.sizes, self.programs, self.disks = args, sizes, programs, disks
        self.broken = set()

    def fits(self, system, snapshots):
        return system.backend != "btrfs" or snapshots <= self.sizes.most_on_btrfs

    def why_not(self, system):
        """Why a system cannot be measured here at all."""
        for needed in (self.programs[system.program], self.disk(system)):
            if isinstance(needed, Missing):
                return str(needed)
        return None

    def disk(self, system):
        return self.disks.get(system.backend, self.disks[""])

    def root(self, system, snapshots):
        return self.disk(system) / f"{system.store}-{snapshots}"

    def call(self, command, system, snapshots, timeout_s, *more):
        """What the program prints."""
        flag = [] if system.program == "plywood" else ["-root"]
        words = [self.programs[system.program], command, *flag, self.root(system, snapshots), *more,
                 f"--backend={system.backend}", f"--snapshots={snapshots}"]
        done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=timeout_s)
        said = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode != 0:
            raise OSError(f"{command}: {said[-1] if said else f'status {done.returncode}'}")
        return done.stdout.decode()

    def fill(self, system, snapshots):
        """Make the store, unless another system has."""
        if not self.root(system, snapshots).exists():
            self.call("fill", system, snapshots, 1800, *(UNSYNCED if system.program == "plywood" else ()))

    def measure(self, system, snapshots):
        bench.flush(self.disk(system))
        seconds = self.args.seconds or self.sizes.seconds
        said = self.call("measure", system, snapshots, 120 + 20 * seconds, f"--seconds={seconds}", *system.flags)
        return [json.loads(line) for line in said.splitlines()]


def run_all(results, runner, rounds, order):
    """Fill, then interleaved rounds. A system that fails once is left out from there, with the reason."""
    def attempt(system, snapshots, action):
        if system.name in results.reasons or not runner.fits(system, snapshots):
            return
        try:
            for line in action(system, snapshots) or ():
                results.add(system, line)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            results.reasons[system.name] = f"with {snapshots} snapshots: {error}"

    for system in results.systems:
        if why := runner.why_not(system):
            results.reasons[system.name] = why
    for snapshots in results.sizes.snapshots:
        started = time.monotonic()
        for system in results.systems:
            attempt(system, snapshots, runner.fill)
        say(f"stores of {snapshots:,} snapshots made in {time.monotonic() - started:.0f} s")
    for number in range(rounds):
        for snapshots in results.sizes.snapshots:
            for system in order.sample(results.systems, len(results.systems)):
                attempt(system, snapshots, runner.measure)
        say(f"round {number + 1} of {rounds}")


def say(text):
    """Progress, where a person looks."""
    print(f"bench: {text}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------
# Output
# ---------------------------------------------------------------------------------------------------------------


def measured(results):
    """Systems that have numbers."""
    return [system for system in results.systems if results.largest(system)]


def report(results, facts, path):
    """Tables to standard output, everything to the file."""
    print(f"{facts['mode']} run of {facts['duration_s']} s, kernel {facts['kernel']}, {facts['cpus']} CPUs, "
          f"{facts['disk']['type']}{' in memory' if facts['disk']['in_memory'] else ''}, "
          f"load {facts['load_before'][0]:.1f} before, {facts['load_after'][0]:.1f} after")
    print("; ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    for operation in OPERATIONS:
        print_operation(results, operation)
    print_rates(results)
    print_peers(results)
    print_growth(results)
    if results.reasons:
        print("\nmissing numbers")
    for name, why in results.reasons.items():
        print(f"  {name}: {why}")
    if path:
        path.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")


def print_operation(results, operation):
    """Times in stores of all sizes."""
    sizes = results.sizes.snapshots
    head = ["system", *(f"{n:,}" for n in sizes), "growth", "p99 in the largest"]
    lines = []
    for system in measured(results):
        times = [results.median(system, n, operation) for n in sizes]
        if any(times):
            slow = results.median(system, results.largest(system), operation, "p99_us")
            lines.append([system.name, *map(bench.number, times), bench.times(results.growth(system, operation)),
                          bench.number(slow)])
    what = ", divided by snapshots" if operation in EACH else ""
    if lines:
        bench.print_table(f"{operation}: median time, us{what}", head, lines)


def print_rates(results):
    """The large store in numbers that people ask for."""
    head = ["system", "snapshots", "prepare/s", "commit/s", "remove/s", "stat/s", "update/s", "list, ms"]
    lines = []
    for system in measured(results):
        n = results.largest(system)
        rates = [results.median(system, n, operation, "per_second")
                 for operation in ("prepare", "commit", "remove", "stat", "update")]
        listed = results.median(system, n, "list")
        lines.append([system.name, f"{n:,}", *(f"{rate:,.0f}" if rate else "-" for rate in rates),
                      bench.number(listed * n / 1e3 if listed else None)])
    bench.print_table("calls per second, and a list of everything, in the largest store", head, lines)


def peers(results):
    """Pairs of a system and the one of containerd that it is compared with, and the largest store of both."""
    systems = {system.name: system for system in measured(results)}
    pairs = [(system, systems[system.peer]) for system in systems.values() if system.peer in systems]
    return [(ours, theirs, min(results.largest(ours), results.largest(theirs))) for ours, theirs in pairs]


def faster(results, ours, theirs, snapshots, operation):
    """How many times faster; with what containerd puts off until its garbage collection."""
    times = [results.median(system, snapshots, operation) for system in (ours, theirs)]
    if operation == "remove" and times[1]:
        times[1] += results.median(theirs, snapshots, "discard") or 0
    return times[1] / times[0] if all(times) else None


def print_peers(results):
    """How many times faster."""
    operations = [operation for operation in OPERATIONS if operation != "discard"]
    head = ["system", "beside", "snapshots", *operations]
    lines = [[ours.name, theirs.name, f"{n:,}",
              *(bench.times(faster(results, ours, theirs, n, operation)) for operation in operations)]
             for ours, theirs, n in peers(results)]
    if lines:
        bench.print_table("times faster than containerd (remove: with what it discards later)", head, lines)


def print_growth(results):
    """Where the number of snapshots decides what a call costs."""
    found = [(results.growth(system, operation), system.name, operation)
             for system in measured(results) for operation in OPERATIONS]
    steep = sorted((entry for entry in found if entry[0] and entry[0] > FLAT), reverse=True)
    print(f"\ncalls that cost more than {FLAT:.0f} times as much in the largest store as in the smallest: "
          f"{len(steep)} of {sum(entry[0] is not None for entry in found)}")
    for growth, name, operation in steep:
        print(f"  {name} {operation}: {bench.times(growth)}")


def as_json(results, facts):
    """Everything, raw samples included."""
    growth = [{"system": system.name, "operation": operation, "growth": results.growth(system, operation)}
              for system in measured(results) for operation in OPERATIONS]
    ratios = [{"system": ours.name, "peer": theirs.name, "snapshots": n, "operation": operation,
               "faster": faster(results, ours, theirs, n, operation)}
              for ours, theirs, n in peers(results) for operation in OPERATIONS]
    samples = [{"name": key[0], **line} for key, lines in results.lines.items() for line in lines]
    return {"facts": facts, "systems": {system.name: dataclasses.asdict(system) for system in results.systems},
            "growth": growth, "faster": ratios, "samples": samples, "missing": results.reasons}


def machine_facts(args, sizes, disk):
    """What a reader must know to compare these numbers with others."""
    first = lambda *command: (bench.quiet_output(*command).strip().splitlines() or [""])[0]
    debian = lambda package: first("dpkg-query", "-W", "-f", "${Version}", package)
    versions = {"plywood": first("git", "-C", bench.REPOSITORY, "rev-parse", "--short", "HEAD"),
                "containerd": debian("golang-github-containerd-containerd-dev"),
                "bbolt": debian("golang-github-coreos-bbolt-dev"), "go": debian("golang-go")}
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "kernel": platform.release(),
        "machine": platform.machine(), "cpus": os.cpu_count(), "load_before": os.getloadavg(),
        "versions": {name: version for name, version in versions.items() if version},
        "disk": {"type": bench.file_system_of(disk), "in_memory": args.ram}, "mode": bench.mode_name(args),
        "sizes": dataclasses.asdict(sizes),
    }


# ---------------------------------------------------------------------------------------------------------------
# The command line
# ---------------------------------------------------------------------------------------------------------------


def parse_arguments(words):
    """One flag a line; what each means stands in the help."""
    parser = argparse.ArgumentParser(prog="bench --lifecycle", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="smaller stores, fewer rounds, fewer systems")
    add("--tiny", action="store_true", help="only to see that everything works; the numbers mean nothing")
    add("--list", action="store_true", help="print the systems and end")
    add("--systems", default="", help="which, separated by commas (see --list)")
    add("--snapshots", default="", help="sizes of stores, separated by commas")
    add("--rounds", type=int, help="processes per system and size")
    add("--seconds", type=float, help="time of each process")
    add("--json", type=Path, help="write everything, with raw samples, to this file")
    add("--dir", type=Path, help="where to work: the disk to test (default: the temporary directory)")
    add("--ram", action="store_true", help="work on images in memory, to leave the disk out (needs root)")
    add("--plywood", type=Path, help="the example lifecycle to measure (default: built now)")
    add("--containerd", type=Path, help="the program of containerd.go to measure (default: built now)")
    add("--seed", type=int, default=1, help="of the order of systems")
    args = parser.parse_args(words)
    known = {system.name: system for system in SYSTEMS}
    names = [name.strip() for name in args.systems.split(",") if name.strip()]
    if unknown := set(names) - set(known):
        parser.error(f"no such system: {', '.join(sorted(unknown))}")
    args.chosen = [known[name] for name in names] or [s for s in SYSTEMS if s.quick or not args.quick]
    args.sizes = TINY if args.tiny else QUICK if args.quick else FULL
    if args.snapshots:
        counts = tuple(sorted(int(count.replace("_", "")) for count in args.snapshots.split(",")))
        args.sizes = dataclasses.replace(args.sizes, snapshots=counts)
    return args


def build_programs(args):
    """Each program that a chosen system needs, or why there is none."""
    programs = {}
    for name, build in (("plywood", build_plywood), ("containerd", build_containerd)):
        if any(system.program == name for system in args.chosen):
            try:
                programs[name] = build(args)
            except Missing as error:
                say(f"without {name}: {error}")
                programs[name] = error
    return programs


def main(words):
    """Measure and report."""
    args = parse_arguments(words)
    if args.list:
        for system in SYSTEMS:
            print(f"{system.name:16} {system.program:11} {system.backend:8} {system.what}")
        return 0
    if args.ram and (os.geteuid() != 0 or bench.in_user_namespace()):
        raise SystemExit("bench: --ram needs real root, to mount the image")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    programs = build_programs(args)
    bench.private_mounts()
    # The image in memory is made here: it has to have more inodes than that of the other part.
    work = bench.WorkDirectory(argparse.Namespace(**{**vars(args), "ram": False}))
    try:
        disks = make_disks(args, args.sizes, work)
    except Missing as error:
        raise SystemExit(f"bench: {error}")
    facts = machine_facts(args, args.sizes, disks[""])
    results = Results(args.chosen, args.sizes)
    start = time.monotonic()
    runner = Runner(args, args.sizes, programs, disks)
    run_all(results, runner, args.rounds or args.sizes.rounds, random.Random(args.seed))
    facts["load_after"], facts["duration_s"] = os.getloadavg(), round(time.monotonic() - start)
    report(results, facts, args.json)
    return 0 if measured(results) else 1
