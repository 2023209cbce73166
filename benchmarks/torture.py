"""Kill runs at random moments, and feed the parser garbage for minutes: `python -m benchmarks.torture`.

After each kill the output must be whole or absent, the source as it was, and the next run must
leave nothing behind. Too slow for every day; `tests/faults` does a handful of the same.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click

RUN = (sys.executable, "-c", "from nemo_prune.cli.main import main; main()")
DEMO = Path(__file__).resolve().parent.parent / "nemo_prune" / "data" / "demo"


@dataclass
class Victim:
    """A command that makes `out` from `source`; `expected` is the hash of a whole output."""

    arguments: list[str]
    source: Path
    out: Path
    codes: tuple[int, ...] = (0,)
    expected: str = ""
    source_hash: str = ""
    seconds: float = 0.0

    def prepare(self) -> None:
        """Run once to the end, for the output to expect and the time it takes."""
        self.source_hash = sha256(self.source)
        started = time.monotonic()
        self.finish()
        self.seconds = time.monotonic() - started
        self.expected = sha256(self.out)
        self.out.unlink()

    def start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*RUN, *self.arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def finish(self) -> None:
        """Run to the end; nothing but the source and the output may be left."""
        code = self.start().wait()
        if code not in self.codes:
            raise AssertionError(f"exit code {code} of {self.arguments}")
        if left := self.temporary():
            raise AssertionError(f"left behind: {left}")

    def temporary(self) -> list[Path]:
        return list(self.out.parent.glob(f".{self.out.name}.*.tmp"))

    def kill(self, chance: random.Random, number: int = signal.SIGKILL) -> int:
        """Kill a run at a random moment, every other time while it writes; its exit code."""
        process = self.start()
        if chance.random() < 0.5:
            while process.poll() is None and not self.temporary():
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0, self.seconds))
        process.send_signal(number)
        code = process.wait()
        self.check()
        return code

    def check(self) -> None:
        """The output is whole or absent, the source is what it was."""
        if sha256(self.source) != self.source_hash:
            raise AssertionError("the source was changed")
        if self.out.exists():
            if self.expected != sha256(self.out):
                raise AssertionError("the output is neither whole nor absent")
            self.out.unlink()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def applying(model: Path, folder: Path, neurons: list[dict[str, object]]) -> Victim:
    """`apply` of a manifest of these neurons."""
    orders, out = folder / "orders.json", folder / "out.safetensors"
    source = {"path": model.name, "sha256": sha256(model)}
    orders.write_text(json.dumps({
        "format": "nemo-prune-manifest/1", "version": "0", "source": source, "options": {},
        "prompts": [], "neurons": neurons,
    }))  # fmt: skip
    return Victim(["apply", str(model), "--manifest", str(orders), "-o", str(out)], model, out)


def pruning(model: Path, folder: Path, prompts: Path, *options: str) -> Victim:
    """`prune` of a list of prompts."""
    out = folder / "out.safetensors"
    arguments = ["prune", str(model), "--prompts", str(prompts), "-o", str(out), *options]
    return Victim(arguments, model, out, codes=(0, 1))


def torture(victim: Victim, kills: int, chance: random.Random) -> int:
    """How many of `kills` runs were killed before their end; AssertionError on any damage."""
    victim.prepare()
    killed = sum(victim.kill(chance) == -signal.SIGKILL for _ in range(kills))
    victim.finish()
    victim.check()
    return killed


@click.command()
@click.option("--kills", default=200, show_default=True, help="Of apply and prune together.")
@click.option("--fuzz-seconds", default=600, show_default=True, help="0: no fuzzing.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model", type=click.Path(path_type=Path), default=DEMO / "demo.safetensors")
@click.option("--prompts", type=click.Path(path_type=Path), default=DEMO / "memorized.txt")
def main(kills: int, fuzz_seconds: int, seed: int, model: Path, prompts: Path) -> None:
    """Kill apply and prune at random moments of the demo, then fuzz the parser."""
    chance = random.Random(seed)
    found = json.loads(
        subprocess.run([*RUN, "inspect", str(model), "--json"], capture_output=True, check=True).stdout
    )
    neurons = [{"layer": layer["name"], "row": 0} for layer in found["value_layers"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for verb, victim in (
            ("apply", applying(model, folder, neurons)),
            (
                "prune",
                pruning(model, folder, prompts, "--tau", "0.5", "--gate", "0.5", "--seeds", "3", "-q"),
            ),
        ):
            killed = torture(victim, kills // 2, chance)
            click.echo(f"{verb}: {killed} of {kills // 2} runs killed before their end, no damage")
    if fuzz_seconds:
        fuzz = [sys.executable, "-m", "benchmarks.fuzz_header", str(fuzz_seconds), str(seed)]
        sys.exit(subprocess.run(fuzz, check=False).returncode)


if __name__ == "__main__":
    main()
