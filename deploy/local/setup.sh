#!/bin/sh
# Makes .venv with exactly the packages of requirements/dev.txt and darkroom itself. Needs Python 3.11 or later, nothing else.
set -eu
cd "$(dirname "$0")/../.."
# Twice --quiet: errors only, none of the warnings a machine's own pip configuration may cause.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

# One at a time: two would delete each other's half-made .venv. Not flock, which not every system has. A link is made
# whole or not at all, so the lock always names its holder; whose holder has died is moved away, not deleted: somebody
# else may have done so, and taken it, since we looked.
lock=.venv.lock
mine=$lock.$$
waited=
trap 'rm -f "$mine"; [ "$(cat "$lock" 2>/dev/null)" != "$$" ] || rm -f "$lock"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
echo "$$" >"$mine"
until ln "$mine" "$lock" 2>/dev/null; do
    holder=$(cat "$lock" 2>/dev/null) || continue
    if kill -0 "$holder" 2>/dev/null; then
        [ -n "$waited" ] || echo "waiting for process $holder, which is making .venv (if it is not, delete $lock)"
        waited=yes
        sleep 1
    elif mv "$lock" "$mine.old" 2>/dev/null; then
        [ "$(cat "$mine.old")" = "$holder" ] || ln "$mine.old" "$lock" 2>/dev/null || :
        rm -f "$mine.old"
    fi
done
rm -f "$mine"
# Whom we waited for has made what we want, unless something has changed since.
if [ -n "$waited" ] && [ -e .venv/.installed ] &&
    [ -z "$(find requirements/dev.txt pyproject.toml -newer .venv/.installed)" ]; then
    exit 0
fi

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
