#!/usr/bin/env python3
"""Many clients at once on `plywood serve` and on containerd's own snapshotter: main.go says what they do.

    scripts/load/run.py [--short] [--calls N] [--directory DIR] [SYSTEM...]

SYSTEM is containerd-overlay or containerd-native, or a backend of plywood: overlay, native or fuse (mounted by the
clients). Each has 64 clients, 10,000 calls and a store of its own in DIR (default: that for temporary files). A wrong
answer is a failure, and no time is judged. With --short it is plywood's backends only.

plywood must also hold at most MOST_MIB in memory and MOST_DESCRIPTORS open, stop by itself, and leave a store in which
`plywood check` finds nothing. The last line is "load: N passed, M failed", counted in systems.

To be run as root, with Debian's golang-github-containerd-containerd-dev. PLYWOOD_BIN is the directory of plywood and
plywood-fuse; default: target/release, built when it is missing.
"""
import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, time

# It has some 28 MiB, a third of them pages of files, after 30,000 calls, and 36 after 400,000, which is where it stays.
MOST_MIB = 48
# One for each client, and what the daemon has for itself.
MOST_DESCRIPTORS = 64 + 64
REPO = pathlib.Path(__file__).resolve().parents[2]
PLYWOOD = ["overlay", "native", "fuse"]


def run(system, load, plywood, place, calls):
    """Runs the clients on one system; what they measured, and what is wrong."""
    store, socket = place / "store", place / "socket"
    own = not system.startswith("containerd-")
    if own:
        base = [plywood, "--root", store, "--backend", system, "--log", "warn"]
        serve = [*base, "serve", "--address", socket, *(["--mounts", "fuse3"] if system == "fuse" else [])]
    else:
        serve = [load, "serve", "-root", store, "-backend", system.partition("-")[2], "-address", socket]
    environment = {**os.environ, "PATH": f"{plywood.parent}:{os.environ['PATH']}"}
    server = subprocess.Popen(serve, env=environment)
    try:
        for _ in range(100):
            if socket.exists() or server.poll() is not None:
                break
            time.sleep(0.1)
        clients = [load, "run", "-address", socket, "-pid", str(server.pid), "-calls", str(calls)]
        ran = subprocess.run(clients, stdout=subprocess.PIPE, text=True, timeout=1800)
        if ran.returncode != 0:
            return None, ["the clients failed"]
        result, wrong = json.loads(ran.stdout), []
        server.terminate()
        if server.wait(30) != 0 and own:
            wrong.append(f"the daemon ended with {server.returncode}")
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
    if own:
        resident = max(s["resident_kib"] for s in result["samples"]) / 1024
        descriptors = max(s["descriptors"] for s in result["samples"])
        if resident > MOST_MIB:
            wrong.append(f"{resident:.0f} MiB in memory")
        if descriptors > MOST_DESCRIPTORS:
            wrong.append(f"{descriptors} descriptors")
        if subprocess.run([*base, "check"], env=environment, stdout=subprocess.DEVNULL).returncode != 0:
            wrong.append("plywood check found something")
    return result, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--directory")
    parser.add_argument("systems", nargs="*", metavar="SYSTEM")
    asked = parser.parse_args()
    systems = asked.systems or ([] if asked.short else ["containerd-overlay"]) + PLYWOOD
    binaries = os.environ.get("PLYWOOD_BIN")
    if not binaries:
        binaries = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "release"
        build = ["cargo", "build", "--release", "--quiet", "-p", "plywood", "-p", "plywood-fuse"]
        subprocess.run(build, cwd=REPO, check=True)
    plywood = pathlib.Path(binaries).resolve() / "plywood"
    failed = 0
    with tempfile.TemporaryDirectory(prefix="plywood-load-", dir=asked.directory) as work:
        load = pathlib.Path(work) / "load"
        go = {**os.environ, "GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOFLAGS": ""}
        subprocess.run(["go", "build", "-o", load, "."], cwd=REPO / "scripts/load", env=go, check=True)
        for system in systems:
            place = pathlib.Path(work) / system
            place.mkdir()
            result, wrong = run(system, load, plywood, place, asked.calls)
            shutil.rmtree(place)
            if result:
                times = result["times"]["all"]
                print(f"{system}: {result['calls']} calls right, {result['per_second']:.0f}/s,"
                      f" p50 {times['p50_ms']:.1f} ms, p99 {times['p99_ms']:.1f} ms")
                for s in result["samples"]:
                    print(f"    after {s['calls']} calls: {s['resident_kib'] / 1024:.1f} MiB ({s['anonymous_kib'] / 1024:.1f} of its own),"
                          f" {s['threads']} threads, {s['descriptors']} descriptors")
            for what in wrong:
                print(f"{system}: {what}")
            failed += bool(wrong)
            sys.stdout.flush()
    print(f"load: {len(systems) - failed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
