"""Make one virtual environment per peer library, under `benchmarks/.work/venvs/`.

Each peer is installed as a wheel from the package index, with the same torch as whence. Some pull builds of
torchvision and torchaudio that do not fit a CPU-only torch and then break `import transformers`; no peer
needs them for a language model, so they are removed again. bitsandbytes only serves quantised models on a GPU.

Run: python benchmarks/peers/set_up.py [peer ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

WORK = Path(__file__).resolve().parents[1] / ".work"
TORCH = "torch==2.13.0"
SHARED = (TORCH, "transformers==5.23.0", "numpy", "safetensors", "datasets==5.2.0", "accelerate")
PEERS: dict[str, tuple[str, ...]] = {
    "kronfluence": ("kronfluence==1.0.1",),
    "bergson": ("bergson==2.5.1",),
    "dattri_llm": ("dattri-llm[attribution]==0.1.0",),
}
UNUSED = ("torchvision", "torchaudio")


def python_of(peer: str) -> Path:
    """Path of the interpreter in a peer's environment."""
    return WORK / "venvs" / peer / "bin" / "python"


def set_up(peer: str) -> None:
    """Create the environment of one peer, unless its marker says that it is complete."""
    marker = WORK / "venvs" / peer / "complete"
    wanted = "\n".join(SHARED + PEERS[peer])
    if marker.exists() and marker.read_text() == wanted:
        print(f"{peer}: ready")
        return
    print(f"{peer}: installing", flush=True)
    venv.create(marker.parent, with_pip=True, clear=True)
    constraints = marker.parent / "constraints.txt"
    constraints.write_text(TORCH + "\n")
    pip = [str(python_of(peer)), "-m", "pip"]
    subprocess.run([*pip, "install", "-q", "-c", str(constraints), *SHARED, *PEERS[peer]], check=True)
    subprocess.run([*pip, "uninstall", "-q", "-y", *UNUSED], check=True)
    marker.write_text(wanted)
    print(f"{peer}: ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", default=list(PEERS), help=f"any of {', '.join(PEERS)}; default: all")
    for peer in parser.parse_args().peers:
        if peer not in PEERS:
            parser.error(f"unknown peer {peer!r}; known: {', '.join(PEERS)}")
        set_up(peer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
