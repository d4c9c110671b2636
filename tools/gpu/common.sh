# What the scripts beside this share; they source it after `set -euo pipefail`.
#
# Every one runs from a checkout that nobody installed, without a network: the packages that the
# machine's Python lacks are carried as wheels in a folder.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1

fail() { # MESSAGE: one line, and the end
    echo "error: $1" >&2
    exit 1
}

usage() { # says how the script that was called is called: the comment that it opens with
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

value_of() { # OPTION NUMBER_OF_ARGUMENTS_LEFT VALUE
    [ "$2" -ge 2 ] || fail "$1 needs a value. See --help."
    printf '%s\n' "$3"
}

is_minutes() { # OPTION VALUE
    [[ $2 =~ ^[1-9][0-9]{0,3}$ ]] || fail "$1 is $2. Expected whole minutes, from 1."
}

use_wheels() { # FOLDER SITE: installs the wheels of FOLDER into the folder SITE, onto the path
    [ -n "$1" ] || return 0
    [ -d "$1" ] || fail "--wheels $1 is no folder."
    compgen -G "$1/*.whl" >/dev/null || fail "no wheels in $1. Expected files *.whl."
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$2" "$1"/*.whl || fail "the wheels in $1 cannot be installed."
    export PYTHONPATH="$PYTHONPATH:$2"
}
