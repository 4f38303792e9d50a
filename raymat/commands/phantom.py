"""``raymat phantom``: write CT phantoms as DICOM files."""

from __future__ import annotations

import argparse

from raymat.commands.build_options import add_phantoms

HELP = "write CT phantoms with a known alpha as DICOM files"


def add_arguments(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The arguments of ``raymat phantom``."""
    command.add_argument("-o", "--out", required=True, help="folder to write")
    add_phantoms(command)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument(
        "--pet",
        action="store_true",
        help="write PET-CT phantoms as NIfTI with a case table: solid lesions, every second one against collapsed lung",
    )
    kind.add_argument(
        "--retest",
        action="store_true",
        help="write a second scan of each lesion: another scanner, position and readers; as NIfTI",
    )
    command.set_defaults(run=run)
    return command


def run(options: argparse.Namespace) -> int:
    """``raymat phantom``."""
    from raymat.sources.phantom import write_pet_cts, write_phantoms, write_retests

    if options.retest:
        scans = write_retests(options.out, options.n, options.seed, progress=print)
        print(f"second scans of {options.n} phantoms in {options.out}, listed in {scans}")
        return 0
    if options.pet:
        cases = write_pet_cts(options.out, options.n, options.seed, progress=print)
        print(f"{options.n} PET-CT phantoms in {options.out}, listed in {cases}; matte them with")
        print(
            f"raymat build --cases {cases} --channels CT,PET --intensity-range -1000 400 --intensity-range 0 10 "
            "-o pet-mattes"
        )
        return 0
    table = write_phantoms(options.out, options.n, options.seed, progress=print)
    print(f"{options.n} phantoms in {options.out}; their true alphas and parameters are listed in {table}")
    return 0
