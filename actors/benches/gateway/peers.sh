#!/bin/sh
# Installs the two gateways that the benchmark compares with, each by its own client, into the folder given as the
# first argument. What stands there already is kept. A peer that cannot be installed is reported and left out: its
# row then says so.
set -u

folder=${1:?the folder to install into}
litellm=1.106.2
portkey=1.15.2
mkdir -p "$folder" || exit 1
cd "$folder" || exit 1
failed=0

if ! litellm/bin/python -c "import importlib.metadata as m; assert m.version('litellm') == '$litellm'" 2>/dev/null; then
    # The proxy imports `mcp`, which its extra does not always bring along.
    if python3 -m venv litellm && litellm/bin/pip install --quiet "litellm[proxy]==$litellm" mcp; then
        echo "LiteLLM $litellm installed"
    else
        rm -rf litellm
        echo "LiteLLM $litellm could not be installed" >&2
        failed=1
    fi
fi

if ! grep -qs "\"version\": \"$portkey\"" portkey/node_modules/@portkey-ai/gateway/package.json; then
    # No install scripts: nothing that the gateway needs to run comes from one.
    if npm install --silent --ignore-scripts --no-audit --no-fund --prefix portkey "@portkey-ai/gateway@$portkey"; then
        echo "Portkey $portkey installed"
    else
        rm -rf portkey
        echo "Portkey $portkey could not be installed" >&2
        failed=1
    fi
fi
exit $failed
