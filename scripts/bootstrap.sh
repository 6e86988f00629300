# Sourced by the scripts beside it: finds a Python and keeps a virtual environment as setup.cfg wants it.

find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "This needs Python 3.11 or newer, and found none on the PATH." >&2
    echo "Install it from your system's packages (apt install python3 python3-venv, dnf install python3.12," >&2
    echo "brew install python) or from https://www.python.org/downloads/, then start again." >&2
    return 1
}

# make_environment FOLDER EXTRAS [OPTIONS]: a virtual environment with the package, editable, and its extras.
make_environment() {
    # Where Python is told to keep no bytecode, each of the many processes here would compile all that it imports.
    unset PYTHONDONTWRITEBYTECODE
    if ! "$1/bin/python" -c '' 2>/dev/null; then
        python=$(find_python)
        echo "Making a virtual environment in $1 ..."
        rm -rf "$1"
        if ! "$python" -m venv "$1"; then
            rm -rf "$1"
            echo "$python could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        fi
    fi
    folder=$1 extras=$2
    shift 2
    wanted="$extras $* $(cat setup.cfg pyproject.toml | cksum)"
    if [ "$(cat "$folder/installed" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing the package and what it needs here ($extras) ..."
        if ! "$folder/bin/python" scripts/install.py "$@" --editable ".[$extras]"; then
            echo "The packages could not be installed; the reason is above. They come from the index that pip is set to:" >&2
            echo "'$folder/bin/python -m pip config list' shows it, PIP_INDEX_URL or pip's configuration changes it. Then start again." >&2
            return 1
        fi
        echo "$wanted" >"$folder/installed"
    fi
}
