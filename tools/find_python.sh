#!/bin/sh
# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later

# Print the path of a Python 3.12 or 3.13 that can make a virtual environment,
# or say on standard error what is missing and exit with status 1.
#
# Looked for, in this order: $PYTHON; the Python that made the environment
# given as the first argument; python3.13, python3.12, python3 and python on
# PATH; pyenv, uv and /usr/local, /opt.

set -u
unset PYTHONHOME PYTHONPATH

home=${HOME:-/root}
environment=${1:-.venv}
rejected=""

# Exits with 0 when fit, and prints why not on standard output otherwise.
probe='
import sys
if sys.version_info[:2] not in ((3, 12), (3, 13)):
    print("is Python %d.%d" % sys.version_info[:2]); sys.exit(1)
import importlib
missing = []
for name in ("venv", "ensurepip", "ssl", "sqlite3", "zlib", "bz2", "lzma", "ctypes"):
    try:
        importlib.import_module(name)
    except ImportError:
        missing.append(name)
if missing:
    print("is Python %d.%d but lacks " % sys.version_info[:2] + ", ".join(missing)); sys.exit(2)
'

accept() {
    # $1: a command or path. Prints its executable and ends the search when fit.
    found=$(command -v "$1" 2>/dev/null) || return 1
    case "$rejected" in *"  $found "*) return 1 ;; esac
    if reason=$("$found" -c "$probe" 2>/dev/null); then
        # Past shims, to the interpreter itself.
        "$found" -c 'import sys; print(sys.executable)'
        exit 0
    fi
    rejected="$rejected
  $found ${reason:-does not run}"
    return 1
}

if [ -n "${PYTHON:-}" ]; then
    accept "$PYTHON"
    {
        printf 'PYTHON=%s cannot be used.%s\n' "$PYTHON" "${rejected:-
  There is no such command.}"
        printf 'Give a Python 3.12 or 3.13, for example: make test PYTHON=/usr/bin/python3.13\n'
    } >&2
    exit 1
fi

if [ -f "$environment/pyvenv.cfg" ]; then
    accept "$(sed -n 's/^executable = //p' "$environment/pyvenv.cfg")"
fi
for name in python3.13 python3.12 python3 python; do
    accept "$name"
done
for root in "${PYENV_ROOT:-$home/.pyenv}/versions" "$home/.local/share/uv/python" /usr/local /opt /opt/python; do
    for version in 3.13 3.12; do
        for path in "$root"/bin/python$version "$root"/$version*/bin/python$version \
                    "$root"/*$version*/bin/python$version; do
            [ -x "$path" ] && accept "$path"
        done
    done
done

{
    echo 'latent_coadds needs Python 3.12 or 3.13 (with venv, ssl and sqlite3); none was found.'
    if [ -n "$rejected" ]; then
        printf 'These were looked at:%s\n' "$rejected"
    fi
    cat <<'END'
Get one in any of these ways, then run the same command again:
  Debian 13, Ubuntu 24.04 and later:  sudo apt install python3 python3-venv
  pyenv (any Linux, macOS):           pyenv install 3.13
  uv (any Linux, macOS):              uv python install 3.13
A Python elsewhere can be named:      make test PYTHON=/path/to/python3.13
If a Python above lacks venv or ensurepip, its Debian package is called
python3.12-venv or python3.13-venv. One that lacks ssl, sqlite3, bz2, lzma or
ctypes was built without their headers: install libssl-dev libsqlite3-dev
libbz2-dev liblzma-dev libffi-dev zlib1g-dev and build it again.
END
} >&2
exit 1
