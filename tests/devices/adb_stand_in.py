# ruff: noqa: T201 (programs print)
"""Stands in for ``adb`` and a phone: the phone is a folder, and its shell this machine's sh.

No part of a phone is here: no adbd, no Android, no USB. What is real are the scripts that would
run there, the processes, their signals, and the files. Its words are those of adb 29.

The folder ($ADB_STAND_IN) holds:

    devices     what ``adb devices`` lists
    log         each call's arguments, as written here
    old         when there: a phone before Android 7 (no exit status, CRLF, one stream)
    full        when there: nothing can be written to the phone
    root/       the phone's files: /data and /sys of a script are these
    bin/        all the programs that the phone has
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HOME = Path(os.environ["ADB_STAND_IN"])


def main(arguments: list[str]) -> int:
    with (HOME / "log").open("a") as log:
        log.write(json.dumps(arguments) + "\n")
    if arguments == ["devices"]:
        print("List of devices attached")
        print((HOME / "devices").read_text())
        return 0
    assert arguments[0] == "-s"
    serial, verb, *rest = arguments[1:]
    state = listed().get(serial)
    if state != "device":
        return refuse(serial, state)
    if verb == "push":
        return push(rest)
    if verb == "pull":
        return pull(*rest)
    assert verb == "shell"
    return shell(serial, " ".join(rest))


def listed() -> dict[str, str]:
    lines = (HOME / "devices").read_text().splitlines()
    return dict(line.split("\t") for line in lines if "\t" in line)


def refuse(serial: str, state: str | None) -> int:
    if state is None:
        print(f"error: device '{serial}' not found", file=sys.stderr)
    else:
        print(f"error: device {state}.", file=sys.stderr)
    return 1


def there(path: str) -> Path:
    return HOME / "root" / path.lstrip("/")


def push(paths: list[str]) -> int:
    *sources, target = paths
    for source in sources:
        if (HOME / "full").exists():
            print(
                f"adb: error: failed to copy '{source}' to '{target}': "
                "remote couldn't create file: No space left on device",
                file=sys.stderr,
            )
            return 1
        shutil.copy(source, there(target) / Path(source).name)
    return 0


def pull(source: str, target: str) -> int:
    if not there(source).is_file():
        print(
            f"adb: error: failed to stat remote object '{source}': No such file or directory\n"
            f"adb: error: remote object '{source}' does not exist",
            file=sys.stderr,
        )
        return 1
    shutil.copy(there(source), target)
    return 0


def shell(serial: str, script: str) -> int:
    for folder in ("/data/", "/sys/"):
        script = script.replace(folder, f"{HOME}/root{folder}")
    environment = {"PATH": f"{HOME}/bin", "ADB_STAND_IN": str(HOME)}
    process = subprocess.Popen(
        ["/bin/sh", "-c", script],
        env=environment,
        cwd=HOME / "root",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if (HOME / "old").exists() else subprocess.PIPE,
    )
    while process.poll() is None:
        # An unplugged phone goes on by itself, and adb ends.
        if serial not in listed():
            return 255
        time.sleep(0.02)
    said, errors = process.communicate()
    if (HOME / "old").exists():
        sys.stdout.buffer.write(said.replace(b"\n", b"\r\n"))
        return 0
    sys.stdout.buffer.write(said)
    sys.stderr.buffer.write(errors)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
