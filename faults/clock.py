"""A wrong wall clock for one process: a small library that shifts the time, for LD_PRELOAD.

The clock jumps to the right time as soon as the file that `BACK_VARIABLE` names exists.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from devstack.state import STATE_VARIABLE
from faults.conditions import NotHere

BACK_VARIABLE = "CLOCK_BACK_FILE"
_SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static int skew(void) {
    const char *back = getenv("CLOCK_BACK_FILE");
    return back && access(back, F_OK) == 0 ? 0 : SKEW;
}
/* The wall clock of this process is SKEW seconds ahead (behind, if negative); its monotonic clock is right. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += skew();
    return answer;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *into) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (into) *into = precise.tv_sec;
    return precise.tv_sec;
}
"""


def clock_shim(folder: Path, by_s: int) -> Path:
    """Compile a library that shifts the wall clock by `by_s` seconds. NotHere where that does not work."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotHere("no C compiler for the clock shim")
    shim = folder / f"clock{by_s}.so"
    command = [compiler, "-shared", "-fPIC", "-O1", f"-DSKEW=({by_s})", "-x", "c", "-", "-o", str(shim), "-ldl"]
    done = subprocess.run(command, input=_SHIM.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        raise NotHere(f"the clock shim does not compile: {done.stderr.decode(errors='replace')[:200]}")
    told = subprocess.run(
        [sys.executable, "-c", "import time; print(time.time())"],
        env={**os.environ, "LD_PRELOAD": str(shim)}, capture_output=True, check=True,
    )  # fmt: skip
    skew_s = float(told.stdout) - time.time()
    if abs(skew_s - by_s) > 30:
        raise NotHere(f"the clock shim has no effect here: {skew_s:.0f} s")
    return shim


def clock_folder(state: Path) -> Path:
    """Where `main` puts the library of a stack, and looks for the file that lets its clock jump back."""
    return state / "clock"


def main() -> None:
    """`python -m faults.clock SECONDS COMMAND...`: run a command of a stack with its clock ahead until it jumps."""
    ahead_s, *command = sys.argv[1:]
    folder = clock_folder(Path(os.environ[STATE_VARIABLE]))
    folder.mkdir(mode=0o700, exist_ok=True)
    shim = clock_shim(folder, int(ahead_s))
    environ = {**os.environ, "LD_PRELOAD": str(shim), BACK_VARIABLE: str(folder / "back")}
    os.execvpe(command[0], command, environ)  # noqa: S606 - the command takes the place of this process


if __name__ == "__main__":
    main()
