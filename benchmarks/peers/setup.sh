#!/usr/bin/env bash
# Makes the peers' environments in benchmarks/.envs (not part of the repository):  bash benchmarks/peers/setup.sh [sb3] [rejax] [cleanrl] [sb3-contrib]
# The language peers are large and made only when named:  bash benchmarks/peers/setup.sh trl vllm
# PYTHON chooses the interpreter, PIP_ARGS reaches every pip install (to choose a CPU build of PyTorch, for one), CLEANRL_REPOSITORY another clone source.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
envs="$(dirname "$here")/.envs"
python="${PYTHON:-python3}"
cleanrl_commit=fe8d8a03c41a7ef5b523e2e354bd01c363e786bb
cleanrl_repository="${CLEANRL_REPOSITORY:-https://github.com/vwxyzjn/cleanrl}"

mkdir -p "$envs"
for name in "${@:-sb3 rejax cleanrl sb3-contrib}"; do
  for peer in $name; do
    requirements="$here/requirements-$peer.txt"
    if [ ! -f "$requirements" ]; then
      echo "unknown peer '$peer': choose from sb3, sb3-contrib, rejax, cleanrl, trl, vllm" >&2
      exit 2
    fi
    "$python" -m venv "$envs/$peer"
    torch="$(grep '^torch==' "$requirements" || true)"
    if [ -n "$torch" ]; then
      # shellcheck disable=SC2086  # PIP_ARGS is a list of words
      "$envs/$peer/bin/pip" install --quiet ${PIP_ARGS:-} "$torch"
    fi
    # shellcheck disable=SC2086
    "$envs/$peer/bin/pip" install --quiet ${PIP_ARGS:-} -r "$requirements"
    if [ "$peer" = cleanrl ] && [ ! -d "$envs/cleanrl-source" ]; then
      git clone --quiet "$cleanrl_repository" "$envs/cleanrl-source"
      git -C "$envs/cleanrl-source" checkout --quiet "$cleanrl_commit"
    fi
    if [ "$peer" = vllm ]; then
      "$envs/$peer/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
    fi
    echo "$peer is ready"
  done
done
