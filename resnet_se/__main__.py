"""The console script: `resnet-se train …` is `python -m resnet_se.train …`."""

from __future__ import annotations

import signal
import sys
from importlib import import_module

from resnet_se import __version__
from resnet_se.utils.errors import nearest

COMMANDS = {
    "train": "train, test once, write the run directory",
    "evaluate": "test a run's checkpoint again, with any TTA",
    "predict": "labels and probabilities of files, folders, archives",
    "export": "ONNX, torch.export or safetensors, checked on real images",
    "inspect": "what an SE network's gates do, and what they cost",
    "plots": "a run's pictures again",
    "data": "look at images and labels: counts, duplicates, label errors",
    "bundle": "a folder and a zip for people who never saw the run",
    "demo": "a local web page: drop a picture, compare runs",
    "benchmark": "images per second, the usual way and ours, interleaved",
    "plan": "what a sweep would cost, and whether every job can work",
    "report": "tables, statistics and pictures from result.json files",
    "record": "what went into a run's hash, or what makes two runs differ",
    "reproduce": "train a finished run again; what agrees, to which digit",
    "models": "the presets' parameters, MMAC and layers",
}

# Functions of a composed configuration; their modules are imported once it is right.
TASKS = {
    "evaluate": "evaluate.evaluate",
    "predict": "predict.predict",
    "export": "export.export",
    "inspect": "inspect_gates.inspect",
    "plots": "plots.plots",
    "data": "data_summary.summarise",
    "bundle": "bundle.bundle_run",
    "demo": "demo.demo",
    "benchmark": "benchmark.benchmark",
}
# Of another name in conf/.
CONFIGS = {"data": "data_summary"}
# The others' `main` reads its own command line.
MODULES = {name: name for name in COMMANDS if name not in TASKS}
MODULES["models"] = "model_table"
# Those that only print: a reader that goes away, as `head` does, ends them in silence.
LISTINGS = ("inspect", "models", "plan", "predict", "record")


def usage() -> str:
    """Return the help page: every command, and how to read on."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: resnet-se COMMAND [arguments]",
            "",
            *(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()),
            "",
            "resnet-se COMMAND --help says more; -V or --version prints the version.",
        ]
    )


def main() -> None:
    """Answer a question about the commands, or hand the rest of the line to one."""
    arguments = sys.argv[1:] or ["help"]
    if arguments[0] in ("-V", "--version"):
        print(f"resnet-se {__version__}")
        return
    if arguments[0] == "help" and len(arguments) > 1:  # of one command
        arguments = [arguments[1], "--help"]
    command = arguments[0]
    listing = command in LISTINGS or {"-h", "--help", "help"} & set(arguments)
    if listing and hasattr(signal, "SIGPIPE"):  # `… | head` ends it without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if command in ("-h", "--help", "help"):
        print(usage())
        return
    if "-sc" in arguments:  # Hydra's would complete for `resnet-se train` alone
        from resnet_se.commands.completion import answer

        print(*answer(arguments, list(COMMANDS), CONFIGS), sep="\n")
        return
    if command not in COMMANDS:
        hint = nearest(command, COMMANDS)
        print(f"error: unknown command {command!r}; {hint}", file=sys.stderr)
        sys.exit(2)
    # As `python -m` does: one's own modules lie in the working directory.
    sys.path.insert(0, "")
    # Hydra and argparse read what is left, as after `python -m`.
    sys.argv = [f"resnet-se {command}", *arguments[1:]]
    run(command)


def run(command: str) -> None:
    """Run a command with the arguments in `sys.argv`; print its help where asked."""
    task = TASKS.get(command)
    if {"-h", "--help"} & set(sys.argv[1:]) and (task or command in ("train", "plan")):
        from resnet_se.commands.completion import help_page

        module = (task or command).partition(".")[0]
        print(help_page(CONFIGS.get(command, command), module))
    elif task:
        from resnet_se.commands.app import run_command

        run_command(task, CONFIGS.get(command, command))
    else:
        import_module(f"resnet_se.commands.{MODULES[command]}").main()


if __name__ == "__main__":
    main()
