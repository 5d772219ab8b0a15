#!/usr/bin/env bash
# The sandbox's tests as a normal user, whose programs bubblewrap isolates. Needs root, bubblewrap and a Python of the system that
# this user may run; says which of them is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python=/usr/bin/python3
packages=$(.venv/bin/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
as_user=(runuser -u nobody -- env HOME=/nonexistent PYTHONDONTWRITEBYTECODE=1 "PYTHONPATH=$PWD/src:$packages" "$python")
if [ "$(id -u)" != 0 ] || ! command -v bwrap > /dev/null; then
  echo "sandbox_as_user: not run, it needs root and bubblewrap"
elif ! "${as_user[@]}" -c "import sys, errata, pytest; assert sys.version_info[:2] == $(.venv/bin/python -c 'import sys; print(tuple(sys.version_info[:2]))')"; then
  echo "sandbox_as_user: not run, the user nobody cannot read this checkout or has no Python of its version"
else
  "${as_user[@]}" -m pytest -q -p no:cacheprovider tests/feedback/sandbox/test_run.py
fi
