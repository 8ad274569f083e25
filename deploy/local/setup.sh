#!/bin/sh
# Makes .venv with exactly the packages of requirements/dev.txt and darkroom itself. Needs Python 3.11 or later, nothing else.
set -eu
cd "$(dirname "$0")/../.."
# Twice --quiet: errors only, none of the warnings a machine's own pip configuration may cause.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

python=
for name in python3.11 python3.12 python3.13 python3; do # 3.11 first: the lock was made with it
    if is_recent "$name"; then python=$name && break; fi
done
if [ -z "$python" ]; then
    echo "Python 3.11 or later is needed and none was found on PATH: install it, then try again." >&2
    exit 1
fi

# Debian and Ubuntu ship Python without the part that makes environments.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Python's venv module is missing: install the package $package, then try again." >&2
        exit 1
    fi
    echo "installing $package with apt-get"
    log=$(mktemp)
    if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$package"; } \
        </dev/null >"$log" 2>&1; then
        echo "apt-get could not install $package: $(grep '^E:' "$log" | tail -1)" >&2
        rm -f "$log"
        exit 1
    fi
    rm -f "$log"
fi

is_recent .venv/bin/python || "$python" -m venv --clear .venv
echo "installing requirements/dev.txt into .venv"
.venv/bin/python -m pip install --quiet --quiet --require-hashes --requirement requirements/dev.txt
# setuptools is in the lock, so nothing is fetched beside it.
.venv/bin/python -m pip install --quiet --quiet --no-deps --no-build-isolation --editable .
touch .venv/.installed
