"""A real OpenSSH server for the tests: on a free port of loopback, with keys of its own.

Debian's package is unpacked into pytest's cache folder where the machine has no ``sshd``; nothing
is installed. Run by root, the server wants a user ``sshd`` and a folder ``/run/sshd``: it sees
them in a mount namespace of its own.
"""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
SetEnv TMPDIR={temporary}
"""

# Aliases as a person has them in ~/.ssh/config; the first matching value counts.
_CLIENT = """\
Host stranger
  IdentityFile {folder}/other_key
Host noisy
  IdentityFile {folder}/noisy_key
Host unknown
  UserKnownHostsFile /dev/null
Host changed
  UserKnownHostsFile {folder}/changed_hosts
Host board stranger noisy unknown changed
  HostName 127.0.0.1
  User {user}
  Port {port}
Host * !stranger !noisy
  IdentityFile {folder}/key
Host *
  GlobalKnownHostsFile /dev/null
  UserKnownHostsFile {folder}/known_hosts
  IdentitiesOnly yes
  IdentityAgent none
"""

_ROOT = """\
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 755 /run/sshd
getent passwd sshd >/dev/null || mount --bind "$1" /etc/passwd
shift
exec "$@"
"""


class NoServerError(Exception):
    """No OpenSSH server can be had here; says why."""


@dataclass(frozen=True)
class Server:
    """user@127.0.0.1:port; ``bin`` holds the ``ssh`` that knows it, ``temporary`` its TMPDIR."""

    user: str
    port: int
    bin: Path
    temporary: Path


@contextmanager
def serve(folder: Path, downloads: Path) -> Iterator[Server]:
    """The server while the context lasts. ``folder`` is empty, ``downloads`` may be kept."""
    sshd, environment = _find(downloads)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(getpass.getuser(), port, folder / "bin", folder / "temporary")
    server.bin.mkdir()
    server.temporary.mkdir()
    _write_keys(folder, port)
    fields = {"folder": folder, "port": port, "user": server.user, "temporary": server.temporary}
    (folder / "sshd_config").write_text(_SERVER.format(**fields))
    (folder / "ssh_config").write_text(_CLIENT.format(**fields))
    client = server.bin / "ssh"
    client.write_text(f"#!/bin/sh\nexec '{shutil.which('ssh')}' -F '{folder}/ssh_config' \"$@\"\n")
    client.chmod(0o755)

    command = [str(sshd), "-D", "-e", "-f", str(folder / "sshd_config"), *_inner(downloads)]
    if os.geteuid() == 0:
        users = folder / "passwd"
        line = "sshd:x:65534:65534::/run/sshd:/usr/sbin/nologin\n"
        users.write_text(Path("/etc/passwd").read_text() + line)
        command = ["unshare", "--mount", "sh", "-c", _ROOT, "sh", str(users), *command]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, **environment})
    try:
        _wait(process, port, folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait(10)


def _find(downloads: Path) -> tuple[Path, dict[str, str]]:
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        raise NoServerError("no OpenSSH client here")
    installed = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    if installed is not None:
        return Path(installed), {}
    unpacked = downloads / "unpacked" / "usr" / "sbin" / "sshd"
    # Several workers of one run of the tests may want it at once.
    with filelock.FileLock(downloads / "lock"):
        if not unpacked.is_file():
            _unpack(downloads)
    libraries = ":".join(str(path) for path in (downloads / "unpacked/usr/lib").glob("*-linux-*"))
    return unpacked, {"LD_LIBRARY_PATH": libraries}


def _unpack(downloads: Path) -> None:
    fetch = ["apt-get", "download", "openssh-server", "libwrap0"]
    try:
        subprocess.run(fetch, cwd=downloads, check=True, capture_output=True, timeout=60)
        for package in downloads.glob("*.deb"):
            unpack = ["dpkg-deb", "-x", str(package), str(downloads / "unpacked")]
            subprocess.run(unpack, check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise NoServerError(f"no sshd here, and Debian's cannot be fetched: {error}") from None


def _inner(downloads: Path) -> list[str]:
    """Where newer servers find their other programs, when unpacked."""
    inner = downloads / "unpacked" / "usr" / "lib" / "openssh"
    names = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
    found = {key: inner / name for key, name in names.items() if (inner / name).is_file()}
    return [part for key, path in found.items() for part in ("-o", f"{key}={path}")]


def _write_keys(folder: Path, port: int) -> None:
    for name in ("host_key", "key", "other_key", "noisy_key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    public = {path.stem: path.read_text() for path in folder.glob("*.pub")}
    noisy = 'command="echo Welcome; eval \\"$SSH_ORIGINAL_COMMAND\\"" '
    (folder / "authorized_keys").write_text(public["key"] + noisy + public["noisy_key"])
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {public['host_key']}")
    (folder / "changed_hosts").write_text(f"[127.0.0.1]:{port} {public['other_key']}")


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise NoServerError(f"sshd does not start here: {log.read_text().strip()[-300:]}")
